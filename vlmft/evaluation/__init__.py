"""Generate, score, compare: does the tuned model answer better than its base?"""

from vlmft.evaluation.specs import EvaluationSpec, Generate, NoEvaluation

__all__ = ["EvaluationSpec", "Generate", "NoEvaluation"]
