"""What may vary in a LoRA fine-tuning: parameters, configurations, module groups, objectives.

Plain Python and pydantic; nothing here imports torch, Ray, Optuna or MLflow.
"""

from lorafront.spaces.errors import LorafrontError, Problem
from lorafront.spaces.lora import LoraConfiguration, LoraSpace
from lorafront.spaces.objectives import OBJECTIVES, Limit, Objective

__all__ = ["OBJECTIVES", "Limit", "LoraConfiguration", "LoraSpace", "LorafrontError", "Objective", "Problem"]
