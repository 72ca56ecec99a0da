"""The figures that the RLHF-V paper prints (CVPR 2024, arXiv 2312.00849), in percent; None where it has a dash."""

from collections.abc import Mapping
from typing import NamedTuple

SOURCE = "Yu et al., RLHF-V, CVPR 2024 (arXiv 2312.00849)"


class Main(NamedTuple):
    """A row of Table 1."""

    objhal_response: float
    objhal_mention: float
    mhe_object: float
    mhe_position: float
    mhe_number: float
    mhe_all: float
    mmhal_info: float
    mmhal_response: float  # judged by people
    llava_conv: float
    llava_detail: float
    llava_complex: float
    vqa: float | None  # VQAv2 test-dev


class Ablation(NamedTuple):
    """A row of Table 3."""

    mhe_object: float
    mhe_position: float
    mhe_number: float
    mhe_all: float
    mmhal_response: float
    vqa: float | None


class Scene(NamedTuple):
    """Table 2, one kind of place: hallucination over all answers, over those under the scene, and the difference."""

    h_a: float
    h_s: float
    delta: float


TABLE_1: Mapping[str, Main] = {
    "LLaVA": Main(63.0, 29.5, 46.6, 21.2, 19.9, 80.8, 31.9, 70.8, 85.4, 74.3, 96.3, None),
    "Muffin": Main(50.5, 24.5, 33.6, 16.4, 26.0, 74.7, 33.4, 68.8, 89.3, 79.7, 97.7, None),
    "LRV": Main(32.3, 22.3, 43.2, 11.6, 19.2, 82.9, 22.2, 78.1, 61.7, 47.3, 55.0, None),
    "LLaVA-RLHF": Main(38.1, 18.9, 37.7, 17.8, 18.5, 72.6, 39.9, 65.6, 93.8, 74.3, 111.4, None),
    "InstructBLIP": Main(25.9, 14.3, 30.8, 15.1, 17.1, 63.7, 29.5, 64.4, 83.2, 67.6, 90.6, None),
    "Qwen-VL-Chat": Main(43.8, 20.0, 34.9, 16.4, 15.8, 61.0, 38.5, 52.1, 81.9, 77.1, 92.3, 79.5),
    "LLaVA 1.5": Main(46.3, 22.6, 30.8, 17.8, 17.1, 61.0, 39.2, 52.1, 81.6, 75.5, 95.2, 80.0),
    "RLHF-V": Main(12.2, 7.5, 21.9, 7.5, 14.4, 55.5, 40.0, 52.1, 93.1, 75.3, 91.6, 80.0),
    "GPT-4V": Main(13.6, 7.3, 22.6, 12.3, 11.0, 45.9, 47.6, 31.3, 96.0, 102.5, 106.7, 77.2),
}
SCENES = ("living room", "kitchen", "bathroom", "street")
# Scenes in the order of SCENES, then the mean difference.
TABLE_2: Mapping[str, tuple[tuple[Scene, ...], float]] = {
    "LLaVA-1.5": (
        (Scene(25.2, 41.8, 16.6), Scene(18.9, 23.9, 5.0), Scene(22.4, 30.4, 8.0), Scene(20.6, 28.0, 7.4)),
        9.2,
    ),
    "LLaVA-RLHF": (
        (Scene(23.7, 34.5, 10.8), Scene(13.1, 17.4, 4.3), Scene(18.2, 19.5, 1.4), Scene(18.3, 22.7, 4.4)),
        5.2,
    ),
    "QWEN-VL": (
        (Scene(24.5, 34.5, 10.0), Scene(16.4, 20.8, 4.4), Scene(21.6, 17.5, -4.1), Scene(22.5, 32.0, 9.5)),
        5.0,
    ),
    "RLHF-V": ((Scene(5.5, 8.0, 2.5), Scene(3.8, 5.9, 2.1), Scene(4.1, 4.0, -0.1), Scene(2.3, 4.6, 2.3)), 1.7),
    "GPT-4V": ((Scene(8.2, 19.4, 11.2), Scene(4.6, 5.7, 1.1), Scene(5.9, 13.3, 7.5), Scene(4.2, 4.6, 0.4)), 5.0),
}
TABLE_3: Mapping[str, Ablation] = {
    "Muffin": Ablation(33.6, 16.4, 26.0, 74.7, 68.8, None),
    "RLHF-V": Ablation(21.9, 7.5, 14.4, 55.5, 52.1, 80.0),
    "w/ vanilla DPO": Ablation(21.9, 11.6, 11.6, 57.5, 54.2, 80.0),
    "w/ IT-VQA only": Ablation(34.3, 17.1, 17.1, 65.1, 58.3, 80.0),
    "w/ untrust. aug.": Ablation(18.5, 13.7, 14.4, 59.6, 54.2, 77.1),
}
