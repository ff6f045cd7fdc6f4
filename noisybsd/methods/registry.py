"""Target rules (what a sample should be called) and classification losses (how that is learned), by name.

parts.py says what a rule and a loss are. A new one is a class in a module beside this one and an entry
here; a preset in presets.py gives the pair a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic.fields import FieldInfo

from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.ctrr import ContrastiveRegularization
from noisybsd.methods.ill import ImpreciseLabels
from noisybsd.methods.memories import (
    EarlyLearningRegularization,
    EarlyLearningTargets,
    ProgressiveTargets,
    SelfEnsembleLabels,
    TemporalConsistency,
    TemporalEnsemble,
)
from noisybsd.methods.parts import Loss, Part, TargetRule, Task
from noisybsd.methods.plain import CrossEntropy, LabelTargets
from noisybsd.methods.robust import GeneralizedCrossEntropy, LabelSmoothing, SymmetricCrossEntropy
from noisybsd.methods.sop import SparseOverparameterization
from noisybsd.methods.ssr import ConsistentFeatures, SelectedCrossEntropy, SelectedLabels
from noisybsd.methods.tcl import TwinContrastive

TARGET_RULES: dict[str, type[TargetRule]] = {
    "labels": LabelTargets,
    "posterior": PosteriorTargets,
    "elr": EarlyLearningTargets,
    "selc": SelfEnsembleLabels,
    "temporal_ensemble": TemporalEnsemble,
    "ps_kd": ProgressiveTargets,
    "ssr": SelectedLabels,
}

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "elr": EarlyLearningRegularization,
    "temporal_ensemble": TemporalConsistency,
    "sop": SparseOverparameterization,
    "ctrr": ContrastiveRegularization,
    "tcl": TwinContrastive,
    "ssr": SelectedCrossEntropy,
    "ssr_plus": ConsistentFeatures,
    "ill": ImpreciseLabels,
}


def options(part: type[Part]) -> dict[str, FieldInfo]:
    """The keyword arguments of a rule's or loss's constructor, its `options.*`: types and defaults."""
    hints = get_type_hints(part.__init__, include_extras=True)
    return {
        parameter.name: FieldInfo.from_annotated_attribute(hints[parameter.name], parameter.default)
        for parameter in inspect.signature(part).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def build_rule(name: str, task: Task, given: Mapping[str, Any]) -> TargetRule:
    """The target rule `name`, with those of the `given` options that are its own."""
    return _build(TARGET_RULES[name], task, given)


def build_loss(name: str, task: Task, given: Mapping[str, Any]) -> Loss:
    """The loss `name`, with those of the `given` options that are its own."""
    return _build(LOSSES[name], task, given)


def _build(part: Any, task: Task, given: Mapping[str, Any]) -> Any:
    mine = options(part)
    return part(task, **{key: value for key, value in given.items() if key in mine})
