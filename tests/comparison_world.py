"""Answers of three models to 146 drawn questions, some labeled, as files: what a comparison is made from."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (190, 50, 40), "blue": (40, 90, 190), "green": (40, 140, 70), "yellow": (225, 185, 40)}
THINGS = ("car", "van", "truck", "taxi")
NAMES = ("Base", "DPO", "DDPO")
REST = (
    "The street behind it is quiet in the afternoon light.",
    "A few houses with flat roofs stand along the road, and the sky above them is clear.",
    "In the foreground a sidewalk runs from one side of the picture to the other.",
    "It seems to be an ordinary day in a small town.",
)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> </script><!-- ${alert(3)} \u2028 javascript:alert(4)"


def scene(color: str, count: int, seed: int) -> Image.Image:
    """Vehicles of one color on a street."""
    rng = random.Random(seed)
    image = Image.new("RGB", (640, 480), (196, 222, 242))
    draw = ImageDraw.Draw(image)
    for x in range(0, 640, 80):
        height = rng.randint(60, 150)
        draw.rectangle((x, 300 - height, x + 74, 300), fill=tuple(rng.randint(130, 220) for _ in range(3)))
    draw.rectangle((0, 300, 640, 480), fill=(150, 150, 150))
    for i in range(count):
        x = 40 + i * 190
        draw.rounded_rectangle((x, 320, x + 160, 400), 16, fill=COLORS[color])
        for wheel in (x + 20, x + 110):
            draw.ellipse((wheel, 380, wheel + 34, 414), fill=(30, 30, 30))
    return image


def write(folder: Path, items: int = 146) -> dict[str, Path]:
    """Questions with images, an answer file a model, and spans.jsonl of the first model's wrong words.

    The second model lacks question 5, the third failed on question 7; question 3 and its answers are hostile.
    """
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True)
    questions, spans, answers = [], [], {name: [] for name in NAMES}
    for i in range(items):
        color, thing, count = rng.choice(list(COLORS)), rng.choice(THINGS), rng.randint(1, 3)
        scene(color, count, i).save(folder / "images" / f"{i}.jpg", quality=90)
        prompt = HOSTILE if i == 3 else rng.choice(("Describe the image.", "What is happening in this picture?"))
        questions.append({"question_id": f"q{i}", "prompt": prompt, "image": f"images/{i}.jpg"})
        true = f"The image shows {count} {color} {thing}{'s' if count > 1 else ''} on a street."
        seen, number = rng.choice(list(COLORS)), rng.randint(1, 3)
        wrong = f"The image shows {number} {seen} {thing}{'s' if number > 1 else ''} on a street."
        people = "Two people are waiting on the left of the vehicle."
        rest = " ".join(rng.sample(REST, 3))
        texts = (f"{wrong} {people} {rest}", f"{wrong} {rest}", f"{true} {rest}")
        if i == 3:
            texts = (HOSTILE, f"{HOSTILE} 👩‍👩‍👧 A bus.", "A bus.")
        for k, (name, text) in enumerate(zip(NAMES, texts, strict=True)):
            line = {"question_id": f"q{i}", "prompt": prompt, "model_id": f"runs/{name}"}
            if (i, k) == (5, 1):
                continue
            answers[name].append(line | ({"error": "out of memory"} if (i, k) == (7, 2) else {"text": text}))
        if i != 3:
            marks = [(people.split(" are ")[0], "objects"), ("on the left of the vehicle", "positions")]
            marks += [(seen, "others")] * (seen != color) + [(str(number), "numbers")] * (number != count)
            found = [{"start": texts[0].index(w), "text": w, "type": t} for w, t in marks]
            found = sorted((s | {"end": s["start"] + len(s["text"])} for s in found), key=lambda s: s["start"])
            row = {"id": f"Base-{i}", "question_id": f"q{i}", "model": "Base", "annotator": "annotator-1"}
            spans.append(row | {"verdict": "corrected", "prompt": prompt, "response": texts[0], "spans": found})
    files = {"questions": questions, "spans": spans, **answers}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {name: folder / f"{name}.jsonl" for name in files}
