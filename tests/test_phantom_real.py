"""Heads from label maps: what is read, cleaned, added, varied and drawn; on small maps made here."""

import dataclasses
import shutil
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from label_maps import label_map, write_map
from slicewise.data.phantom import LABELS, Phantom, PhantomSettings, make_phantom, pathology, real, store_phantoms, warp
from slicewise.data.phantom.fields import TARGETS, Fields, make_fields, register
from slicewise.data.phantom.heads import draw_descent
from slicewise.data.phantom.labels import TissueVolume
from slicewise.data.phantom.maps import BONE, CODE, HeadMap, find_maps, outside, read_map, read_numbering
from slicewise.data.phantom.parts import PART, SHELLS_MM, Parts
from slicewise.data.phantom.people import find_people, load_person
from slicewise.data.phantom.scanner import Scanner, scan
from slicewise.data.phantom.tissue import Tissues, draw_tissues, tables
from slicewise.data.store import split_store
from slicewise.errors import UserError

SCALE = 0.93


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two persons; what is computed of the first serves the second, whose map differs in one voxel, to save time."""
    out = tmp_path_factory.mktemp("maps")
    values = small_map().copy()
    for name, label in (("one", 0), ("two", 24)):
        values[1, 1, 1] = label
        write_map(out / f"{name}.nii.gz", values)
    return out


@pytest.fixture(scope="module")
def settings(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PhantomSettings:
    cache = tmp_path_factory.mktemp("cache")
    one, two = find_people(folder, None, (2, 0, 0))
    load_person(one, None, cache)
    for suffix in (".npy", ".npz"):
        shutil.copy(cache / f"{one.key}{suffix}", cache / f"{two.key}{suffix}")
    return PhantomSettings(
        size=128,
        pathology=0.0,
        hardening=0.0,
        anatomy=folder,
        split_people=(2, 0, 0),
        split=(1.0, 0.0, 0.0),
        cache=cache,
    )


@pytest.fixture(scope="module")
def person(settings: PhantomSettings) -> tuple[Parts, Fields]:
    assert settings.anatomy
    assert settings.cache
    return load_person(find_people(settings.anatomy, None, (2, 0, 0))[0], None, settings.cache)


@pytest.fixture(scope="module")
def head(settings: PhantomSettings) -> Phantom:
    return make_phantom(5, settings)


@lru_cache(maxsize=1)
def small_map() -> np.ndarray:
    return label_map(SCALE)


def read_values(folder: Path, values: np.ndarray, affine: np.ndarray | None = None) -> HeadMap:
    return read_map(write_map(folder / "map.nii.gz", values, affine), read_numbering())


# --- label maps ---------------------------------------------------------------------------------------------------


def test_a_map_reads_alike_in_any_voxel_order_and_stands_upright(tmp_path: Path) -> None:
    as_published = read_values(tmp_path, small_map())
    as_ras = read_values(tmp_path, small_map(), np.diag([1.0, 1, 1, 1]))
    assert np.array_equal(as_published.tissue, as_ras.tissue)
    eyes, stem = (np.argwhere(as_ras.mask(t)).mean(0)[::-1] for t in ("eye", "brain stem"))
    in_frame = [as_ras.axes @ (v - as_ras.origin) for v in (eyes, stem)]
    assert in_frame[0][1] < -40
    assert abs(in_frame[0][0]) < 1
    assert in_frame[0][2] == pytest.approx(in_frame[1][2], abs=0.5)  # eyes and brain stem in one plane
    left = np.argwhere(as_ras.mask("left white matter")).mean(0)[::-1]
    assert (as_ras.axes @ (left - as_ras.origin))[0] > 15  # x to the patient's left
    assert np.allclose(as_ras.axes @ as_ras.axes.T, np.eye(3))


def test_a_tilted_head_is_set_upright(tmp_path: Path) -> None:
    turned = ndimage.rotate(small_map(), 12, axes=(1, 2), order=0, reshape=False)
    head = read_values(tmp_path, turned)
    pitch = np.degrees(np.arctan2(head.axes[1, 2], head.axes[1, 1]))
    upright = read_values(tmp_path, small_map())
    assert abs(pitch - np.degrees(np.arctan2(upright.axes[1, 2], upright.axes[1, 1]))) == pytest.approx(12, abs=0.7)


def test_cleaning_mends_what_maps_have_wrong_and_keeps_the_cells(tmp_path: Path) -> None:
    values = small_map().copy()
    rng = np.random.default_rng(0)
    bone = np.argwhere(values == 515)
    vault = bone[bone[:, 2] > 130]
    holes = vault[rng.integers(len(vault), size=400)]
    values[tuple(holes.T)] = 0
    values[3:6, 3:6, 150:153] = 24  # strays outside the head
    values[70:74, 173:176, 80:100] = 511  # and a ridge of noise on the skin
    head, whole = read_values(tmp_path, values), read_values(tmp_path, small_map())
    assert ndimage.label(head.tissue > 0)[1] == 1
    around = outside(head.tissue)
    upper = np.arange(len(head.tissue)) < 70
    assert not ((head.tissue == 0) & ~around)[upper].any()  # no hole is left in the vault
    assert (head.mask(*BONE) ^ whole.mask(*BONE))[upper].mean() < 2e-4
    cells = ((whole.tissue == 0) & ~outside(whole.tissue)).sum()
    assert cells > 500  # of mastoid and sinus
    assert (head.tissue > 0).sum() == pytest.approx((whole.tissue > 0).sum(), rel=5e-3)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("one label", "label"),
        ("unknown labels", "numbering does not name label 77, 940"),
        ("4D", "three dimensions"),
        ("fractions", "fractions"),
        ("negative", "labels from"),
        ("no bone", "litres of bone"),
        ("metres", "check the units"),
        ("cut", "cut short"),
        ("empty", "cut short"),
    ],
)
def test_bad_maps_end_in_one_line(tmp_path: Path, what: str, message: str) -> None:
    values, affine = small_map().copy(), np.diag([1.0, 1, 1, 1])
    if what == "one label":
        values[values > 0] = 3
        values[values == 0] = 3
    elif what == "unknown labels":
        values[10:14, 80, 80], values[10:14, 82, 80] = 77, 940
    elif what == "4D":
        values = values[:4, :4, :4, None].repeat(2, 3)
    elif what == "negative":
        values[0] = -3
    elif what == "no bone":
        values[values == 515] = 507
    elif what == "metres":
        affine = np.diag([0.001, 0.001, 0.001, 1])
    file = tmp_path / "map.nii.gz"
    nib.save(nib.Nifti1Image(values * np.float32(1.5) if what == "fractions" else values, affine), file)
    if what in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[: 4000 if what == "cut" else 0])
    with pytest.raises(UserError) as caught:
        read_map(file, read_numbering())
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_folders_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_maps(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no label map"):
        find_maps(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii").write_bytes(b"the same map")
    with pytest.raises(UserError, match="are the same map"):
        find_people(tmp_path, None, (1, 1, 0))
    with pytest.raises(UserError, match="split_people=10 3 3"):
        find_people(tmp_path, None, (10, 3, 3))


def test_other_numberings_come_from_a_table(tmp_path: Path) -> None:
    packaged = Path(real.__file__).with_name("brainweb.toml")
    assert read_numbering(packaged)[2] == CODE["cortex"]
    assert read_numbering()[2] == CODE["left white matter"]
    table = tmp_path / "table.toml"
    for text, message in (
        ('"brian" = [1]', "unknown tissue 'brian'"),
        ('"eye" = [1]\n"skin" = [1]', "1 is both eye and skin"),
        ('"eye" = "one"', "list of whole numbers"),
        ("eye", "cannot be read as TOML"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_numbering(table)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_parts_that_no_map_names_are_where_they_belong(person: tuple[Parts, Fields]) -> None:
    parts, _ = person

    def middle(*names: str) -> np.ndarray:
        at = np.argwhere(np.isin(parts.code, [PART[n] for n in names]))
        assert len(at) > 30, names
        return ((at[:, ::-1] - parts.origin) * 0.5 @ parts.axes.T).mean(0)

    assert abs(middle("falx")[0]) < 1
    assert middle("falx")[2] > -10
    assert middle("tentorium")[1] > 20  # behind
    assert middle("lens")[1] < middle("vitreous")[1] - 4  # in front of the eye
    assert middle("pineal")[1] > middle("thalamus")[1] + 5
    assert abs(middle("septum")[2] - middle("eye muscle")[2]) < 40
    assert middle("orbital fat")[1] < middle("brain stem")[1] - 40
    for name in ("diploe", "suture", "galea", "skin", "scalp fat", "internal capsule", "basilar artery", "mastoid"):
        middle(name)


def test_skin_covers_the_head_and_diploe_lies_between_tables(person: tuple[Parts, Fields]) -> None:
    code = person[0].code[40:220]
    air = code == PART["air"]
    beside_air = ndimage.binary_dilation(air) & ~air
    assert (code[beside_air] == PART["skin"]).mean() > 0.9  # the rest is eyes
    diploe = code == PART["diploe"]
    beside = ndimage.binary_dilation(diploe, iterations=2) & ~diploe
    assert np.isin(code[beside], [PART[n] for n in ("vault", "suture", "skull base", "mastoid")]).mean() > 0.97


def test_cortex_is_shelled_by_its_distance_from_the_fluid(person: tuple[Parts, Fields]) -> None:
    code = person[0].code[60:200]
    fluid = np.isin(code, [PART["sulcus"], PART["cistern"], *(PART[f"sulcus {i}"] for i in range(len(SHELLS_MM)))])
    away = ndimage.distance_transform_edt(~fluid) * 0.5
    means = [away[code == PART[name]].mean() for name in ("cortex 0", "cortex 1", "cortex 2", "cortex")]
    assert means == sorted(means)
    assert means[0] < 0.8
    assert means[-1] > 1.2


# --- tissue ---------------------------------------------------------------------------------------------------------


def test_tissues_are_correlated_as_in_people() -> None:
    drawn = [draw_tissues(np.random.default_rng(i)) for i in range(400)]
    column = {f.name: np.array([getattr(t, f.name) for t in drawn]) for f in dataclasses.fields(Tissues)}
    difference = column["grey"] - column["white"]
    assert 5 < difference.min()
    assert difference.max() < 12
    assert np.corrcoef(column["blood"], column["grey"])[0, 1] > 0.4
    assert np.corrcoef(column["age"], column["sulci_mm"])[0, 1] > 0.5
    assert np.corrcoef(column["age"], column["leukoaraiosis"])[0, 1] > 0.4
    assert column["csf"].min() >= 1
    assert column["csf"].max() <= 7
    assert np.ptp(column["age"]) > 60


def test_tables_open_sulci_and_thicken_fat_without_a_voxel_changing() -> None:
    t = draw_tissues(np.random.default_rng(1))

    def fluid(mm: float) -> list[float]:
        hu, _ = tables(dataclasses.replace(t, sulci_mm=mm))
        return [float(hu[PART[f"cortex {i}"]]) for i in range(3)]

    assert fluid(0.0) == pytest.approx([t.grey] * 3)
    assert fluid(0.8)[:2] == pytest.approx([t.csf + 2] * 2, abs=0.1)
    assert fluid(0.8)[2] == pytest.approx(t.grey)
    assert t.csf + 2 < fluid(0.6)[1] < t.grey
    thin, thick = (tables(dataclasses.replace(t, fat_mm=mm)) for mm in (3.0, 9.0))
    fat = [(label == LABELS["fat"]).sum() for _, label in (thin, thick)]
    assert fat[1] >= fat[0] + 5
    hu, label = tables(t)
    assert (label[: len(PART)][1:] > 0).all()
    assert set(label) <= set(LABELS.values())
    assert hu[PART["vault"]] > 1000
    assert hu[PART["air"]] == -1000
    assert hu[PART["layer 0"]] < -50


# --- deformation ----------------------------------------------------------------------------------------------------


def test_random_flows_fold_nowhere_and_run_backwards() -> None:
    for seed in range(3):
        velocity = warp.random_velocity(np.random.default_rng(seed), (60.0, 30.0, 14.0), (2.2, 1.2, 0.45))
        there = warp.exponential(velocity)
        assert warp.jacobian(there).min() > 0.1
        assert 0.3 < there.std() < 4
        back = warp.exponential(-velocity)
        core = (slice(None), slice(6, -6), slice(6, -6), slice(6, -6))
        again = (there + warp.sample(back, warp.grid_mm() + there))[core]
        assert again.abs().mean() < 0.05
        assert again.abs().max() < 1.0
    assert not warp.exponential(torch.zeros(3, *warp.SHAPE)).any()


def test_folding_fields_are_weakened_until_they_do_not() -> None:
    wild = warp.random_velocity(np.random.default_rng(0), (16.0,), (9.0,))
    assert warp.jacobian(warp.exponential(wild)).min() < real.LEAST_JACOBIAN
    assert warp.jacobian(real.unfolded(wild)).min() >= real.LEAST_JACOBIAN


def test_jacobian_of_a_dilation() -> None:
    twice = warp.grid_mm() * 0.25
    assert torch.allclose(warp.jacobian(twice), torch.full((1,), 1.25**3), atol=1e-3)


def volume_of(parts: Parts, fields: Fields, target: str, amount: float, *names: str) -> int:
    """Voxels of some parts after one target moved by `amount` mm."""
    velocity = torch.from_numpy(fields.targets[TARGETS.index(target)] * np.float32(amount))
    z, y, x = np.arange(90, -80, -1.5), np.arange(-100, 100, 1.5), np.arange(-80, 80, 1.5)
    code = real.sample_parts(parts, warp.exponential(velocity), np.eye(3), z, y, x).numpy()
    return int(np.isin(code, [PART[n] for n in names]).sum())


def test_targets_move_what_they_name(person: tuple[Parts, Fields]) -> None:
    parts, fields = person
    ventricles = [volume_of(parts, fields, "ventricles", a, "ventricle") for a in (-1.0, 0.0, 2.0)]
    assert ventricles[0] < 0.8 * ventricles[1]
    assert ventricles[2] > 1.4 * ventricles[1]
    vault = [volume_of(parts, fields, "skull", a, "vault", "diploe") for a in (0.0, 2.0)]
    assert vault[1] > 1.15 * vault[0]
    brain = [volume_of(parts, fields, "skull", a, "white matter", "cortex") for a in (0.0, 2.0)]
    assert brain[1] == pytest.approx(brain[0], rel=0.03)  # a thicker skull leaves the brain
    scalp = [volume_of(parts, fields, "scalp", a, "scalp fat", "layer 0", "layer 1") for a in (0.0, 2.0)]
    assert scalp[1] > 1.1 * scalp[0]


def test_ventricle_size_follows_age_and_the_map(person: tuple[Parts, Fields]) -> None:
    fields = person[1]
    t = draw_tissues(np.random.default_rng(0))
    young, old = (
        [real.draw_amounts(np.random.default_rng(i), dataclasses.replace(t, age=a), fields)[0] for i in range(40)]
        for a in (25, 90)
    )
    assert np.mean(old) > np.mean(young) + 0.3
    limits = np.log([0.6, 2.5]) * fields.ventricle_mm
    assert limits[0] - 1e-6 <= min(young)
    assert max(old) <= limits[1] + 1e-6


def test_registration_brings_two_persons_together_without_folds(tmp_path: Path) -> None:
    one = make_fields(read_values(tmp_path, small_map()))
    shifted = np.roll(one.classes, (1, 1), (2, 3))  # 4 mm back and to the left
    velocity = torch.from_numpy(register(one.classes, shifted))
    flow = warp.exponential(velocity)
    moved = warp.sample(torch.from_numpy(one.classes), warp.grid_mm() + flow).numpy()
    shown = warp.grid_mm()[2].numpy() > -60
    before, after = (((c - shifted) ** 2)[:, shown].mean() for c in (one.classes, moved))
    assert after < 0.15 * before
    assert warp.jacobian(flow).min() > 0.1


# --- heads ----------------------------------------------------------------------------------------------------------


def test_a_head_is_the_same_whatever_was_made_before_it(head: Phantom, settings: PhantomSettings) -> None:
    other = make_phantom(6, settings)
    again = make_phantom(5, settings)
    assert np.array_equal(again.volume.hu, head.volume.hu)
    assert np.array_equal(again.labels, head.labels)
    assert again.description == head.description
    n = min(len(other.labels), len(head.labels))
    assert (other.labels[:n] != head.labels[:n]).mean() > 0.02


def test_labels_lie_on_the_head(head: Phantom) -> None:
    hu, labels = head.volume.hu, head.labels
    assert labels.shape == hu.shape
    assert labels.dtype == np.uint8
    assert head.volume.spacing == (5.0, 1.875, 1.875)

    def median(name: str) -> float:
        inside = ndimage.binary_erosion(labels == LABELS[name], np.ones((1, 3, 3)))
        return float(np.median(hu[inside if inside.sum() > 20 else labels == LABELS[name]]))

    t = head.description
    assert median("white matter") == pytest.approx(t["white"], abs=2.5)
    assert median("ventricles") < median("white matter") - 8
    assert median("muscle") == pytest.approx(t["muscle"], abs=8)
    assert median("skull") > 500
    assert median("air") == -1000
    assert np.median(hu[:, :, :3]) == -1000


def test_two_thirds_of_heads_are_morphs_and_say_so(settings: PhantomSettings, head: Phantom) -> None:
    assert head.split == "train"
    assert "phantom seed 5 of " in head.source
    drawn = [draw_descent(seed, settings) for seed in range(60)]
    morphs = [d.share for d in drawn if d.share]
    assert 10 < len(morphs) < 35
    assert all(0.1 <= s <= 0.7 for s in morphs)
    seed = next(i for i, d in enumerate(drawn) if d.share)
    assert f"{drawn[seed].share:.2f} of the way to {drawn[seed].other.name}" in make_phantom(seed, settings).source


def test_no_split_shares_a_person(tmp_path: Path) -> None:
    for i in range(16):
        (tmp_path / f"sub-{i:02d}.nii.gz").write_bytes(b"%d" % i)
    people = find_people(tmp_path, None, (10, 3, 3))
    assert [sum(p.split == s for p in people) for s in ("train", "val", "test")] == [10, 3, 3]
    settings = PhantomSettings(anatomy=tmp_path, split=(0.4, 0.3, 0.3))
    seen: dict[str, str] = {}
    for seed in range(300):
        d = draw_descent(seed, settings)
        for p in (d.person, *d.morphed):
            assert seen.setdefault(p.name, d.person.split) == d.person.split == p.split == d.first.split
    assert len(seen) == 16


def test_store_holds_heads_with_their_split_and_persons(
    tmp_path: Path, settings: PhantomSettings, head: Phantom
) -> None:
    store = store_phantoms(tmp_path / "store", 1, 5, settings)
    record = store.records[0]
    assert record.split == "train"
    assert record.source == head.source
    assert np.array_equal(store.hu(record), head.volume.hu)
    stamp = (store.path / record.file).stat().st_mtime_ns
    moved = dataclasses.replace(settings, cache=tmp_path / "elsewhere")  # where parts are kept changes no head
    assert (store_phantoms(tmp_path / "store", 1, 5, moved).path / record.file).stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other settings"):
        store_phantoms(tmp_path / "store", 1, 5, dataclasses.replace(settings, kernel="bone"))
    with pytest.raises(UserError, match="few persons"):
        split_store(store.path, (0.5, 0.5, 0.0), 0)


# --- scanner --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def cylinder() -> TissueVolume:
    """A skull of 150 mm with brain in it, and two dense bones."""
    y, x = np.ogrid[-100:100, -100:100]
    r = np.hypot(y, x)[None] + np.zeros((40, 1, 1))
    hu = np.select([r < 70, r < 76, r < 80], [30.0, 1200.0, -100.0], -1000.0).astype(np.float32)
    labels = np.select([r < 70, r < 76, r < 80], [18, 4, 2], 0).astype(np.uint8)
    for side in (50, 140):
        hu[20:28, 95:105, side : side + 12] = 1800
    labels[30, 150, 100] = LABELS["teeth"]
    return TissueVolume(hu, labels, (1.25, 1.0, 1.0), np.arange(2, 40, 4), (slice(20, 220), slice(20, 220)), 240, {})


def image(**options: object) -> np.ndarray:
    base = {"size": 240, "fov_mm": 240.0, "slice_mm": 5.0, "profile_mm": 5.0, "noise_hu": 0.0, "hardening": 0.0}
    return scan((1,), cylinder(), Scanner(**base | options))[0]  # type: ignore[arg-type]


def test_every_option_of_the_scanner_does_its_own() -> None:
    plain = image()
    assert plain.shape == (10, 240, 240)
    assert plain[2, 120, 120] == pytest.approx(30, abs=0.01)
    assert plain[2, 2, 2] == pytest.approx(-1000, abs=0.01)
    hard = image(hardening=1.0) - plain
    assert hard[2, 120, 186] > 0.4
    assert hard[6, 120, 120] < hard[2, 120, 120] - 1
    moving = image(motion=1.0) - plain
    changed = np.abs(moving).max((1, 2)) > 1
    assert 1 <= changed.sum() <= 3
    metal = image(metal=1.0)
    assert metal.max() > 2500
    assert np.abs(metal - plain)[:5].max() < 1
    held = image(table=1.0)
    where = np.abs(held - plain) > 20
    assert where.any((1, 2)).all()
    assert plain[where].max() < -400
    assert np.nonzero(where)[1].min() > 100
    thin = image(profile_mm=1.25)
    assert np.abs(np.diff(thin, axis=0))[4:8].max() > np.abs(np.diff(plain, axis=0))[4:8].max()


def test_kernels_trade_sharpness_for_noise() -> None:
    edges, levels = [], []
    for kernel in ("soft", "standard", "bone"):
        edges.append(np.abs(np.diff(image(kernel=kernel)[2, 120])).max())
        levels.append((image(kernel=kernel, noise_hu=4.0) - image(kernel=kernel))[2, 100:140, 100:140].std())
    assert edges == sorted(edges)
    assert levels == sorted(levels)
    assert levels[2] > 2.5 * levels[0]


# --- pathology ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(pathology.KINDS), key=lambda k: k.__name__), ids=lambda k: k.__name__)
def test_pathology_shows_in_hu_and_label(kind, person: tuple[Parts, Fields]) -> None:  # type: ignore[no-untyped-def]
    parts, _ = person
    t = draw_tissues(np.random.default_rng(2))
    hu_table, label_table = tables(t)
    z, y, x = np.arange(80, -70, -1.25), np.arange(-95, 95, 1.0), np.arange(-75, 75, 1.0)
    code = real.sample_parts(parts, torch.zeros(3, *warp.SHAPE), np.eye(3), z, y, x).numpy()
    hu, labels = hu_table[code], label_table[code]
    before = hu.copy(), labels.copy()
    nowhere = (slice(None), slice(None))
    tissue = TissueVolume(hu, labels, (1.25, 1.0, 1.0), np.arange(2), nowhere, 190, dataclasses.asdict(t))
    said = kind(pathology.Scene(np.random.default_rng(3), tissue))
    new = labels != before[1]
    name = {"intracerebral": "bleed", "extradural": "bleed", "subdural": "bleed", "subarachnoid": "bleed"}.get(
        kind.__name__.split("_")[0], "bleed" if "bleed" in kind.__name__ else kind.__name__
    )
    mine = labels == LABELS[name]
    assert said
    assert mine.sum() > 10
    assert new.sum() >= mine[new].sum() > 0
    assert new.mean() < 0.05
    assert np.abs(hu - before[0])[new].mean() > 3
    if name == "bleed":
        assert 12 < np.median(hu[mine]) < 95
    if name != "fracture":
        vault = np.isin(code, [PART["vault"], PART["air"], PART["skin"]])
        assert not (hu != before[0])[vault].any()
