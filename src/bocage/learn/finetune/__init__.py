"""Fine-tuning: an encoder and a head trained together on labelled crops, in plain PyTorch."""

from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.finetuned import Finetuned
from bocage.learn.finetune.labelled_arrays import make_training_set
from bocage.learn.finetune.loop import FinetuneResult, finetune
from bocage.learn.finetune.saved import load_finetuned, save_finetuned
from bocage.learn.finetune.set_folder import open_training_set, write_training_set
from bocage.learn.finetune.task import Task
from bocage.learn.finetune.training_set import TrainingSet

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "Finetuned",
    "Task",
    "TrainingSet",
    "finetune",
    "load_finetuned",
    "make_training_set",
    "open_training_set",
    "save_finetuned",
    "write_training_set",
]
