"""Fine-tuning: an encoder and a head trained together on labelled crops, in plain PyTorch."""

from bocage.learn.finetune.finetuned import Finetuned
from bocage.learn.finetune.saved import load_finetuned, save_finetuned
from bocage.learn.finetune.task import Task

__all__ = ["Finetuned", "Task", "load_finetuned", "save_finetuned"]
