"""HU of a person's tissues, and tables that turn parts into HU and labels.

Grey 35-40, white 26-31, difference 7-10, fluid 1-7, blood 45-60 (as its haematocrit), muscle 50-60, fat -100, vitreous
5-12 HU.
"""

from dataclasses import dataclass

import numpy as np

from slicewise.data.phantom.labels import LABELS
from slicewise.data.phantom.parts import LAYER_MM, LAYERS, LEVEL_MM, LEVELS, PART, SHELLS_MM, SKIN_MM
from slicewise.hu import TRUE_AIR_HU

USUAL_FLUID = 0.28  # share of fluid in what lies inside the skull, as maps draw it
# Standard deviation, HU, of the smooth texture inside parts whose name begins so.
TEXTURE = {
    "vault": 60, "diploe": 170, "skull base": 90, "skull base marrow": 150, "facial bone": 80, "facial marrow": 150,
    "mastoid": 150, "dense bone": 60, "septum": 100, "soft": 3, "muscle": 3, "layer": 5, "scalp fat": 8, "fat": 6,
    "orbital fat": 5, "mucosa": 6, "cortex": 0.9, "white matter": 0.9, "periventricular": 1.1, "internal capsule": 0.8,
    "corpus callosum": 0.8, "cerebellar": 0.9, "brain stem": 0.9, "thalamus": 0.9, "putamen": 0.7, "caudate": 0.7,
}  # fmt: skip


@dataclass(frozen=True)
class Tissues:
    """What one person's tissues are: HU, and the widths of what varies between people.

    Attributes
    ----------
    age : years, 20 to 95; grey, white, csf, blood, bone, marrow, muscle, fat : HU.
    sulci_mm : how far the fluid of the sulci reaches into the map's cortex (negative: how far it is filled).
    fat_mm : thickness of the fat under the skin, face and neck.
    planes_mm : half the width of the fat planes between muscles.
    leukoaraiosis : HU by which the white matter about the ventricles is darker.
    calcified : HU of the pineal and of the choroid glomera (0: not calcified).
    """

    age: float
    grey: float
    white: float
    csf: float
    blood: float
    bone: float
    marrow: float
    muscle: float
    fat: float
    sulci_mm: float
    fat_mm: float
    planes_mm: float
    leukoaraiosis: float
    pineal: float
    choroid: float


def draw_tissues(rng: np.random.Generator, fluid_share: float = USUAL_FLUID) -> Tissues:
    """One person's tissues. Haematocrit moves blood, grey and white together; age moves fluid and white matter. Of a
    map with little fluid (`fluid_share` of brain and fluid) the sulci open wider than of one with much."""
    haematocrit = float(rng.normal(0, 1))
    age = float(np.clip(rng.normal(58, 19), 20, 95))
    old = (age - 58) / 20
    grey = 37.2 + 0.9 * haematocrit + rng.normal(0, 0.7)
    room = float(np.clip(5 * (USUAL_FLUID - fluid_share), -0.5, 0.5))
    white = grey - rng.uniform(8.0, 10.5) - 0.3 * max(old, 0)
    return Tissues(
        age=age,
        grey=float(grey),
        white=float(white),
        csf=float(rng.uniform(1, 7)),
        blood=float(51 + 4 * haematocrit + rng.normal(0, 1)),
        bone=float(rng.normal(1500, 130)),
        marrow=float(rng.normal(420, 90)),
        muscle=float(rng.normal(56, 3)),
        fat=float(rng.normal(-102, 5)),
        sulci_mm=float(np.clip(-0.3 + 0.28 * old + rng.normal(0, 0.25) + room, -1.1, 0.9)),
        fat_mm=float(np.exp(rng.normal(np.log(4.0), 0.4))),
        planes_mm=float(rng.uniform(0.5, 1.5)),
        leukoaraiosis=float(max(0.0, rng.normal(0.8 + 1.6 * old, 1.5))),
        pineal=float(rng.uniform(120, 420)) if rng.random() < 0.45 + 0.15 * old else 0.0,
        choroid=float(rng.uniform(100, 420)) if rng.random() < 0.4 + 0.2 * old else 0.0,
    )


def texture_table() -> np.ndarray:
    """float32 (256,): `TEXTURE` of every part."""
    table = np.zeros(256, np.float32)
    for start, sd in TEXTURE.items():
        table[[code for name, code in PART.items() if name.startswith(start)]] = sd
    return table


def tables(t: Tissues) -> tuple[np.ndarray, np.ndarray]:
    """(HU float32 (256,), label uint8 (256,)) of every part."""
    hu, label = np.full(256, TRUE_AIR_HU, np.float32), np.zeros(256, np.uint8)

    def put(part: str, value: float, name: str) -> None:
        hu[PART[part]], label[PART[part]] = value, LABELS[name]

    for part, value, name in (
        ("air cavities", TRUE_AIR_HU, "air cavities"), ("mucosa", 42, "mucosa"), ("skin", 35, "skin"),
        ("scalp fat", t.fat + 12, "fat"), ("galea", 25, "skin"), ("orbital fat", t.fat + 5, "orbit"),
        ("vitreous", t.csf + 3, "eye"), ("sclera", 45, "eye"), ("lens", 85, "lens"),
        ("eye muscle", t.muscle - 4, "orbit"), ("optic nerve", 35, "optic nerve"), ("cistern", t.csf + 2, "cisterns"),
        ("ventricle", t.csf, "ventricles"), ("choroid plexus", 32, "ventricles"), ("pineal", 40, "deep nuclei"),
        ("internal capsule", t.white - 0.5, "internal capsule"), ("corpus callosum", t.white, "corpus callosum"),
        ("white matter lesion", t.white - 5, "white matter"), ("thalamus", t.grey - 1.5, "deep nuclei"),
        ("caudate", t.grey + 0.5, "deep nuclei"), ("putamen", t.grey + 0.5, "deep nuclei"),
        ("pallidum", t.grey - 1.0, "deep nuclei"), ("hippocampus", t.grey - 1.0, "grey matter"),
        ("diencephalon", t.grey - 3, "deep nuclei"), ("cerebellar cortex", t.grey - 0.5, "cerebellum"),
        ("cerebellar white matter", t.white + 1, "cerebellum"),
        ("brain stem", 0.6 * t.white + 0.4 * t.grey, "brain stem"),
        ("falx", t.grey + 18, "falx and tentorium"), ("tentorium", t.grey + 16, "falx and tentorium"),
        ("dura", t.grey + 16, "falx and tentorium"), ("venous sinus", t.blood + 2, "venous sinuses"),
        ("vein", t.blood - 2, "venous sinuses"), ("artery", t.blood, "artery"),
        ("basilar artery", t.blood + 1, "basilar artery"), ("chiasm", t.white + 4, "optic nerve"),
        ("spinal cord", t.white + 4, "spinal cord"), ("vault", t.bone, "skull"), ("diploe", t.marrow + 150, "diploe"),
        ("skull base", t.bone - 350, "skull base"), ("skull base marrow", t.marrow - 50, "skull base"),
        ("facial bone", t.bone - 350, "facial bone"), ("facial marrow", t.marrow - 100, "facial bone"),
        ("mastoid", t.bone - 450, "mastoid"), ("mastoid cells", -100, "mastoid"),
        ("dense bone", t.bone + 350, "skull base"), ("septum", 350, "mastoid"), ("fat", t.fat, "fat"),
        ("muscle", t.muscle, "muscle"), ("tooth", 2100, "teeth"),
        ("suture", 350, "suture"),
        ("periventricular 0", t.white - t.leukoaraiosis, "white matter"),
        ("periventricular 1", t.white - 0.5 * t.leukoaraiosis, "white matter"),
        ("pineal core", t.pineal or 40, "calcification" if t.pineal else "deep nuclei"),
        ("choroid glomus", t.choroid or 32, "calcification" if t.choroid else "ventricles"),
        ("white matter", t.white, "white matter"), ("cortex", t.grey, "grey matter"), ("sulcus", t.csf + 2, "sulci"),
    ):  # fmt: skip
        put(part, value, name)
    edges = (0.0, *SHELLS_MM)
    for i, (low, high) in enumerate(zip(edges, SHELLS_MM)):
        opened = float(np.clip((t.sulci_mm - low) / (high - low), 0, 1))
        filled = float(np.clip((-t.sulci_mm - low) / (high - low), 0, 1))
        put(f"cortex {i}", t.grey + opened * (t.csf + 2 - t.grey), "sulci" if opened > 0.5 else "grey matter")
        put(f"sulcus {i}", t.csf + 2 + filled * (t.grey - t.csf - 2), "grey matter" if filled > 0.5 else "sulci")
    for i in range(LAYERS):
        share = float(np.clip((t.fat_mm - SKIN_MM - i * LAYER_MM) / LAYER_MM + 1, 0, 1))
        put(f"layer {i}", t.muscle - 6 + share * (t.fat - t.muscle + 6), "fat" if share > 0.5 else "muscle")
    for i in range(LEVELS):
        share = float(np.clip((t.planes_mm - i * LEVEL_MM) / LEVEL_MM, 0, 1))
        put(f"soft {i}", t.muscle + share * (t.fat - t.muscle), "fat" if share > 0.5 else "muscle")
    return hu, label
