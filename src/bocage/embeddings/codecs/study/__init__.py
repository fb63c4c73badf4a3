"""The compression study: what each codec costs in score, and what it saves in bytes.

result = evaluate(x, labels, lonlat=lonlat)
result.write("study/")               # table.csv, table.md, study.json, pareto_*.png
"""

from bocage.embeddings.codecs.study.evaluate import StudyOptions, StudyResult, evaluate

__all__ = ["StudyOptions", "StudyResult", "evaluate"]
