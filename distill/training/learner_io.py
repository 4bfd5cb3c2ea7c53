"""A learner in a checkpoint: written, and put back only where its weights mean what they meant."""

from __future__ import annotations

from typing import Any

import torch

from distill.errors import UserError
from distill.models.vision import NORM_EPS
from distill.training.learner import Learner


def learner_state(learner: Learner) -> dict[str, Any]:
    """Everything of a learner that training changes, and the spec that its model can be built from."""
    bias = learner.logit_bias
    return {
        "spec": learner.model.spec(),
        "weights": learner.model.state_dict(),
        "heads": None if learner.heads is None else learner.heads.state_dict(),
        "logit_bias": None if bias is None else bias.detach(),
    }


def load_learner(learner: Learner, saved: dict[str, Any], where: str) -> None:
    """Puts what `learner_state` gave into a learner of the same shapes. `where` opens the message of a UserError.

    The text tower's epsilon belongs to its weights (TIPS has another), so it comes with them. Raises UserError where
    weights have other shapes, or would mean something else: another tokenizer, another GELU.
    """
    _refuse_other_meaning(learner.model.spec(), saved["spec"], where)
    learner.model.text.set_norm_eps(saved["spec"]["text"].get("norm_eps", NORM_EPS))
    try:
        learner.model.load_state_dict(saved["weights"])
        if learner.heads is not None and saved["heads"] is not None:
            learner.heads.load_state_dict(saved["heads"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"{where} has other shapes: {reason} Give students.*, vision.*, text.* and heads.* the values that they "
            f"have in its resolved.yaml."
        ) from error
    if learner.logit_bias is not None and saved["logit_bias"] is not None:
        with torch.no_grad():
            learner.logit_bias.copy_(saved["logit_bias"])


def _refuse_other_meaning(now: dict[str, Any], then: dict[str, Any], where: str) -> None:
    if now["tokenizer"] != then["tokenizer"]:
        raise UserError(
            f"{where} has another tokenizer, so its embeddings mean other words. Set text.tokenizer to the one that it "
            f"was trained with; words builds its vocabulary from data.* and captions.*, so those count too."
        )
    was, here = then["vision"].get("gelu"), now["vision"].get("gelu")
    if was != here:
        raise UserError(f"{where} was trained with vision.gelu {was}, here it is {here}.")
