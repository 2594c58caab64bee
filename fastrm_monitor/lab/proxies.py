"""From labels to a proxy folder on disk: train, calibrate, write, say how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress

from fastrm_monitor.lab import sharing
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.calibration import Held, fit_confidence, fit_probe
from fastrm_monitor.lab.distill import (
    Recipe,
    predict,
    split,
    summary,
    teacher_maps,
    train_proxy,
)
from fastrm_monitor.lab.fidelity import fidelity
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.scoring.anatomy import anatomy_of
from fastrm_monitor.scoring.checkpoint import norm_facts, save_proxy
from fastrm_monitor.scoring.patches import layout_for
from fastrm_monitor.scoring.proxy import ProxyConfig


def make_proxy(
    asker: Asker,
    labels: Labels,
    calibration: Sequence[Labels],
    recipe: Recipe,
    output: Path,
    data: str,
    model_id: str,
    progress: Progress,
) -> ProxyConfig:
    """Train a proxy on labels and write its folder; of several processes (see `sharing`) the main one writes.

    Args:
        asker: of the model that the labels came from.
        labels: split by picture into training and validation.
        calibration: labels to fit the confidence on, of other pictures: the traffic first, then questions that break
            its habits; the validation pictures when there are none.
        recipe: see `Recipe`.
        output: the folder.
        data: name of the data set.
        model_id: name of the model, for the folder's config.
        progress: shows the epochs.

    Returns:
        The config as written; `metrics` has the fidelity on the validation pictures. Other processes than the main one
        return the network's sizes alone.
    """
    anatomy, layout = anatomy_of(asker.model), layout_for(asker.model.config, asker.processor)
    training, validation = split(labels, recipe)
    task = progress.add_task(f"training {recipe.form}", total=recipe.epochs)
    proxy = train_proxy(
        labels,
        training,
        validation,
        recipe,
        layout,
        lambda epoch, auprc: progress.update(
            task, completed=epoch, description=f"training {recipe.form}, validation AUPRC {auprc:.3f}"
        ),
    )
    progress.update(task, completed=recipe.epochs)
    if not sharing.is_main():
        return proxy.config
    found = fidelity(predict(proxy, labels, validation), teacher_maps(labels, validation), recipe.label_threshold)
    held = [Held(one, range(len(one))) for one in calibration] or [Held(labels, validation)]
    probe = fit_probe(labels, training)
    confidence = fit_confidence(proxy, probe, held, layout, flag_rate=recipe.flag_rate, data=data)
    if confidence is None:
        progress.console.print("Too few right or wrong answers to calibrate on: the proxy will serve uncalibrated.")
    at_half = found["thresholds"]["0.5"]
    metrics = {
        "auprc": found["auprc"],
        "base_rate": found["base_rate"],
        "accuracy": at_half["accuracy"],
        "all_negative_accuracy": found["all_negative_accuracy"],
        "f1": at_half["f1"],
        "iou": found["iou"],
        "rank_correlation": found["rank_correlation"],
        "validation_questions": len(validation),
        "confidence": confidence.fitted_on if confidence is not None else None,
    }
    return save_proxy(
        output,
        proxy,
        torch.as_tensor(anatomy.norm.weight),
        confidence,
        model_id=model_id,
        model_type=anatomy.model_type,
        norm=norm_facts(anatomy.norm),
        image_token_id=anatomy.image_token_id,
        label_threshold=recipe.label_threshold,
        training=summary(recipe, labels, training, data),
        metrics=metrics,
    )
