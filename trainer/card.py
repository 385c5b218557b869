"""The model card: what a model is, how good, and what its numbers don't say."""

from collections.abc import Sequence
from typing import Any

from trainer.recipe import Recipe

TITLES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "eer": "equal error rate",
    "tpr_at_fpr_1e-2": "fakes caught at 1 % false alarms",
    "tpr_at_fpr_1e-3": "fakes caught at 0.1 % false alarms",
}


def write_card(recipes: Sequence[Recipe], metrics: dict[str, Any]) -> str:
    """Return the model card of a final training, in Markdown."""
    calibration = metrics["calibration"]
    lines = [
        "# A deepfake-speech detector",
        "",
        f"{_describe_models(recipes, metrics)} {_describe_clips(metrics)}. It answers with the"
        " probability that a clip is fake.",
        "",
        *_describe_members(metrics),
        *_describe_origin(recipes[0].origin, metrics["data_fingerprint"]),
        "## How good",
        "",
        _describe_measurement(metrics),
        "",
        f"| on {metrics['num_clips']['reported']:,} validation clips | |",
        "|---|---|",
        *[f"| {title} | {_number(metrics['validation'][key])} |" for key, title in TITLES.items()],
        "",
        f"Temperature {calibration['temperature']:.3f}, fitted on these validation clips in a"
        f" single pass, and measured {calibration['measured']}; test-time augmentation uses it"
        " as it is:",
        "",
        "| calibration | before | after |",
        "|---|---|---|",
        *[
            f"| {key} | {_number(value)} | {_number(calibration['after'][key])} |"
            for key, value in calibration["before"].items()
        ],
        "",
        "## Use",
        "",
        "    melsearch predict <this folder> <a folder of videos> -o submission.csv",
        "",
        f"A file that can't be read gets the prior, {metrics['prior']:.4f}, the share of fakes in"
        " training.",
        "",
        "It knows the kinds of fakes and of recordings that it was trained on; on others expect it"
        " to do worse, and its probabilities to be off.",
        "",
    ]
    return "\n".join(lines)


def _describe_models(recipes: Sequence[Recipe], metrics: dict[str, Any]) -> str:
    if len(recipes) > 1:
        return (
            f"{len(recipes)} models, {metrics['num_parameters']:,} parameters in all, whose logits"
            " are averaged, trained"
        )
    config = recipes[0].config
    heard = f"Backbone `{config.backbone}` on the `{config.frontend}` frontend"
    seen = f"`{config.video_backbone}` on the picture"
    streams = {"audio": heard, "video": f"Backbone {seen}", "both": f"{heard} and {seen}"}
    return (
        f"{streams[config.modality]}, {metrics['num_parameters']:,} parameters, trained for"
        f" {metrics['epochs']} epochs"
    )


def _describe_members(metrics: dict[str, Any]) -> list[str]:
    """Return a table of an ensemble's members; nothing for a single model."""
    if "members" not in metrics:
        return []
    rows = [
        f"| `{x['backbone']}` | {x['seed']} | {x['epochs']} | {_number(x['validation']['auc'])} |"
        for x in metrics["members"]
    ]
    return ["| member | seed | epochs | AUC alone |", "|---|---|---|---|", *rows, ""]


def _describe_clips(metrics: dict[str, Any]) -> str:
    train, val = metrics["num_clips"]["train"], metrics["num_clips"]["val"]
    if metrics["on"] == "all":
        return f"on {train + val:,} clips (the training and the validation split)"
    return f"on {train:,} clips (the training split)"


def _describe_measurement(metrics: dict[str, Any]) -> str:
    chosen = "the best epochs" if "members" in metrics else f"epoch {metrics['best_epoch']}"
    if metrics["on"] == "all":
        return (
            "These weights have seen all clips, so nothing is left to measure them on. The figures"
            " are those of the same recipe trained on the training split alone; that chose how many"
            " epochs, and the temperature, too."
        )
    if metrics["num_clips"]["reported"] < metrics["num_clips"]["val"]:
        return (
            f"The weights are those of {chosen}, the best on one half of the validation clips;"
            " the figures are of the other half, by which nothing was chosen."
        )
    return (
        f"The weights are those of {chosen}, the best on validation; the figures, of the same"
        " clips, are a little better than new clips would give."
    )


def _describe_origin(origin: dict[str, Any], data_fingerprint: str) -> list[str]:
    """Return a table of it; if the search read other data, nobody can say what it chose by."""
    if not origin:
        return []
    facts = [f"| {key} | {value} |" for key, value in origin.items()]
    lines = ["| origin | |", "|---|---|", *facts, ""]
    if origin.get("data_fingerprint", data_fingerprint) != data_fingerprint:
        lines += [
            f"The data of this training are {data_fingerprint}: other clips than the search read,"
            " or other streams of them. It may have chosen by some that are reported on here.",
            "",
        ]
    return lines


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"
