"""Scenes written in the forms of VQAv2, GQA, POPE and JSON lines, so that the loaders read what they will meet.

Each writer draws `pictures` scenes of one kind and seed, and writes up to `questions` questions about each.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastrm_monitor.lab.datasets.pope import SPLITS
from fastrm_monitor.lab.datasets.scenes import (
    COLORS,
    HABIT_COLOR,
    HABIT_SHAPE,
    SHAPES,
    SIZE,
    Scene,
    SceneQuestion,
    scenes,
)

_VQAV2_TYPES = {"existence": "yes/no", "count": "number"}
_GQA_TYPES = {
    "existence": ("verify", "obj"),
    "color": ("query", "attr"),
    "shape": ("query", "cat"),
    "relation": ("choose", "rel"),
}


def write_vqav2(folder: Path, kind: str, pictures: int, seed: int, questions: int = 4) -> tuple[Path, Path, Path]:
    """Write scenes as VQAv2 has its files; returns the questions file, the annotations file and the pictures folder."""
    images = _made(folder / "val2014")
    asked: list[dict[str, Any]] = []
    annotated: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes(kind, seed, pictures, questions), start=1):
        _save(scene, images / f"COCO_val2014_{image_id:012d}.png")
        for number, question in enumerate(scene.questions):
            question_id = image_id * 1000 + number
            asked.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotated.append(
                {
                    "question_type": question.family,
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": question.answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)
                    ],
                    "image_id": image_id,
                    "answer_type": _VQAV2_TYPES.get(question.family, "other"),
                    "question_id": question_id,
                }
            )
    frame = {"info": {"description": f"{kind} scenes"}, "data_type": "mscoco", "data_subtype": "val2014"}
    questions_file, annotations_file = folder / "questions.json", folder / "annotations.json"
    questions_file.write_text(json.dumps({**frame, "task_type": "Open-Ended", "questions": asked}))
    annotations_file.write_text(json.dumps({**frame, "annotations": annotated}))
    return questions_file, annotations_file, images


def write_gqa(folder: Path, kind: str, pictures: int, seed: int, questions: int = 4) -> tuple[Path, Path, Path]:
    """Write scenes as GQA has its files; returns the questions file, the scene graphs file and the pictures folder.

    GQA neither counts nor has a phrase stand for several objects, so such questions are left out.
    """
    images = _made(folder / "images")
    asked: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    for number, scene in enumerate(scenes(kind, seed, pictures, questions), start=1):
        _save(scene, images / f"{number}.png")
        graphs[str(number)] = _scene_graph(scene, number)
        for place, question in enumerate(scene.questions):
            named = _named(scene, question, number)
            if question.family == "count" or len(named) < len(question.asked):
                continue
            structural, semantic = _GQA_TYPES[question.family]
            asked[f"{number}{place:03d}"] = {
                "imageId": str(number),
                "question": question.text,
                "answer": question.answer,
                "fullAnswer": f"{question.answer}.",
                "types": {"structural": structural, "semantic": semantic, "detailed": question.family},
                "annotations": {"question": named, "answer": {}, "fullAnswer": {}},
                "semantic": [],
                "isBalanced": True,
            }
    questions_file, graphs_file = folder / "questions.json", folder / "scene_graphs.json"
    questions_file.write_text(json.dumps(asked))
    graphs_file.write_text(json.dumps(graphs))
    return questions_file, graphs_file, images


def _scene_graph(scene: Scene, number: int) -> dict[str, Any]:
    objects = {}
    for n, thing in enumerate(scene.objects):
        left, top, right, bottom = thing.box
        objects[f"{number}{n:03d}"] = {
            "name": thing.shape,
            "x": left,
            "y": top,
            "w": right - left,
            "h": bottom - top,
            "attributes": [thing.color],
            "relations": [],
        }
    return {"width": SIZE, "height": SIZE, "objects": objects}


def _named(scene: Scene, question: SceneQuestion, number: int) -> dict[str, str]:
    """The place of each word that stands for an object the answer rests on -> the object's id."""
    words = question.text.replace("?", "").replace(",", "").split()
    named = {}
    for n in question.asked:
        stands = [place for place, word in enumerate(words) if word in (scene.objects[n].shape, "object")]
        named.update({str(place): f"{number}{n:03d}" for place in stands[:1]})
    return named


def write_pope(
    folder: Path, kind: str, pictures: int, seed: int, questions: int = 6
) -> tuple[tuple[Path, Path, Path], Path]:
    """Write scenes as POPE has its files; returns those of random, popular and adversarial, and the pictures folder.

    Half of the questions are about objects that are there, half about absent ones: in the first split any, in the
    second those that the other pictures have most often, in the third those that habitually have the shape or the
    colour of one that is there.
    """
    images = _made(folder / "val2014")
    drawn = list(scenes(kind, seed, pictures, questions=0))
    present = [list(dict.fromkeys((thing.color, thing.shape) for thing in scene.objects)) for scene in drawn]
    often = Counter(pair for pairs in present for pair in pairs)
    lines: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for number, (scene, there) in enumerate(zip(drawn, present, strict=True), start=1):
        name = f"COCO_val2014_{number:012d}.png"
        _save(scene, images / name)
        absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
        absent = [absent[n] for n in np.random.default_rng([seed, number]).permutation(len(absent))]
        expected = {(HABIT_COLOR[shape], shape) for _, shape in there}
        expected |= {(color, HABIT_SHAPE[color]) for color, _ in there}
        chosen = (
            absent,
            sorted(absent, key=lambda pair: -often[pair]),
            sorted(absent, key=lambda pair: pair not in expected),
        )
        for split, away in zip(SPLITS, chosen, strict=True):
            for pairs in zip(there[: questions // 2], away, strict=False):
                for (color, shape), label in zip(pairs, ("yes", "no"), strict=True):
                    text = f"is there a {color} {shape} in the picture?"
                    lines[split].append(
                        {"question_id": len(lines[split]) + 1, "image": name, "text": text, "label": label}
                    )
    random, popular, adversarial = (_write_lines(folder / f"coco_pope_{split}.json", lines[split]) for split in SPLITS)
    return (random, popular, adversarial), images


def write_jsonl(folder: Path, kind: str, pictures: int, seed: int, questions: int = 4) -> Path:
    """Write scenes as JSON lines beside a folder `pictures`; returns the file."""
    _made(folder / "pictures")
    lines = []
    for index, scene in enumerate(scenes(kind, seed, pictures, questions)):
        image = f"pictures/{index}.png"
        _save(scene, folder / image)
        for number, question in enumerate(scene.questions):
            boxes = [[edge / SIZE for edge in scene.objects[n].box] for n in question.asked]
            lines.append(
                {
                    "id": f"{index}-{number}",
                    "image": image,
                    "question": question.text,
                    "answer": question.answer,
                    "group": question.family,
                    "boxes": boxes,
                }
            )
    return _write_lines(folder / "questions.jsonl", lines)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save(scene: Scene, path: Path) -> None:
    from PIL import Image

    Image.fromarray(scene.pixels).save(path)


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
