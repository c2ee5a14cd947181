"""The 12-bit scale: every code comes back, in every companding; what a half-precision path would cost in HU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slicewise import hu
from slicewise.errors import UserError
from slicewise.hu import BRAIN, COMPANDINGS, ICNET, WHOLE, HUScale, Window

CODES = np.arange(-1024, 3072)
ONE_HU = 2 / 4095


@pytest.mark.parametrize("companding", COMPANDINGS)
def test_all_4096_codes_come_back_in_float32(companding):
    scale = HUScale(companding=companding)
    x = scale.encode(CODES)
    assert x.dtype == np.float32
    assert x[0] == -1
    assert x[-1] == 1
    assert np.array_equal(scale.decode_codes(x), CODES)
    assert np.all(np.diff(x) > 0)


@pytest.mark.parametrize("companding", COMPANDINGS)
@pytest.mark.parametrize("window", [BRAIN, ICNET, Window(-200, 900)])
def test_a_window_brings_back_its_codes_and_clips_the_rest(companding, window):
    scale = HUScale(window.lo, window.hi, companding)
    assert np.array_equal(scale.decode_codes(scale.encode(CODES)), np.clip(CODES, window.lo, window.hi))


@pytest.mark.parametrize("window", [WHOLE, BRAIN, ICNET])
def test_linear_windows_come_back_through_to_unit(window):
    x = hu.to_unit(CODES, window)
    assert x.dtype == np.float32
    assert x.min() == -1
    assert x.max() == 1
    assert np.array_equal(hu.round_hu(hu.from_unit(x, window)), np.clip(CODES, window.lo, window.hi))


def test_the_linear_map_is_the_formula():
    h = np.array([-1024.0, -1023.0, 1023.5, 3071.0])
    expected = [-1.0, -1.0 + ONE_HU, 0.0, 1.0]
    np.testing.assert_allclose(HUScale().encode(h), expected, atol=6e-8)
    np.testing.assert_allclose(hu.to_unit(h), expected, atol=6e-8)


@given(st.sampled_from(sorted(COMPANDINGS)), st.lists(st.floats(-1024, 3071), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_fractions_of_hu_come_back_and_keep_their_order(companding, values):
    scale = HUScale(companding=companding)
    h = np.sort(np.array(values))
    x = scale.encode(h)
    assert np.all(np.diff(x) >= 0)
    # float32 has 24 bits: at |x| near 1 one unit in the last place is 6e-8, in bone 0.0004 HU of the companded map.
    np.testing.assert_allclose(scale.decode(x), h, atol=0.005)


@pytest.mark.parametrize("rounded", [hu.round_hu, lambda h: HUScale().decode_codes(hu.to_unit(h))])
def test_rounding_is_to_the_nearest_code(rounded):
    values = np.array([-1023.6, -1.6, -1.4, -0.4, 0.4, 1.4, 1.6, 3070.6])
    assert rounded(values).tolist() == [-1024, -2, -1, 0, 0, 1, 2, 3071]
    assert rounded(values).dtype == np.int16


def test_ties_go_to_the_even_code_so_that_rounding_shifts_no_mean():
    ties = np.array([-1023.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3070.5])
    assert hu.round_hu(ties).tolist() == [-1024, -2, -2, 0, 0, 2, 2, 3070]
    halves = np.arange(-1000, 3000) + 0.5
    assert hu.round_hu(halves).mean() == halves.mean()


def test_what_is_beyond_the_range_is_clipped():
    assert hu.round_hu(np.array([-1e4, -1024.6, 3071.6, 1e6])).tolist() == [-1024, -1024, 3071, 3071]
    assert hu.from_unit(np.array([-1.5, 1.5]), Window(0, 100)).tolist() == [-25, 125], "not clipped: rounding does that"


def test_windows_lie_about_their_centre():
    assert (WHOLE.centre, BRAIN.centre, ICNET.centre) == (1023.5, 30.0, 0.0)


@pytest.mark.parametrize(
    "window, air",
    [(WHOLE, -500), (Window(-501, 900), -500), (Window(-500, 900), 200), (BRAIN, 30), (ICNET, 0)],
)
def test_air_is_half_as_dense_as_water_or_a_windows_lower_half(window, air):
    """-500 HU is as far from air as from water. A window that ends there or above shows all air as its lowest HU."""
    assert HUScale(window.lo, window.hi).air == air


def test_dequantised_codes_keep_their_half_hu_beyond_the_window():
    scale = HUScale()
    x = scale.encode(np.array([-1024.5, 3071.5]))
    np.testing.assert_allclose(x, [-1 - ONE_HU / 2, 1 + ONE_HU / 2], atol=1e-7)
    assert np.array_equal(scale.decode(x), [-1024, 3071])


@pytest.mark.parametrize("companding", COMPANDINGS)
def test_slope_is_the_derivative(companding):
    scale = HUScale(companding=companding)
    h = np.random.default_rng(0).uniform(-1000, 3000, 200)
    step = 0.5
    # encode is float32; the difference over 1 HU has to be taken in float64, so the asinh map is written out here.
    share = {"linear": 0.0, "half": 0.5}[companding]
    ends = np.arcsinh((np.array([-1024, 3071]) - 30) / 60)

    def forward(v):
        bent = 2 * (np.arcsinh((v - 30) / 60) - ends[0]) / (ends[1] - ends[0]) - 1
        return share * bent + (1 - share) * (2 * (v + 1024) / 4095 - 1)

    np.testing.assert_allclose(scale.slope(h), (forward(h + step) - forward(h - step)) / (2 * step), rtol=2e-5)
    np.testing.assert_allclose(scale.encode(h), forward(h), atol=1e-7)
    if companding != "linear":
        assert abs(CODES[np.argmax(scale.slope(CODES))] - 30) <= 1  # steepest in grey and white matter


def test_companding_gives_soft_tissue_the_larger_share():
    slopes = {c: float(HUScale(companding=c).slope(np.array(30.0))) for c in COMPANDINGS}
    assert slopes["linear"] == pytest.approx(ONE_HU)
    assert slopes["half"] / ONE_HU == pytest.approx(4.7, abs=0.1)


def _cost_in_hu(rounded: torch.Tensor, x: torch.Tensor) -> float:
    return float((rounded.double() - x.double()).abs().max()) / ONE_HU


def test_what_half_precision_of_x_would_cost():
    """At |x| in [1/2, 1) one unit in the last place is 1 HU in fp16 and TF32, 8 HU in bf16; rounding errs by half."""
    x = torch.from_numpy(HUScale().encode(CODES + np.random.default_rng(0).uniform(-0.5, 0.5, CODES.shape)))
    assert 3.5 < _cost_in_hu(x.to(torch.bfloat16), x) <= 4.1
    assert 0.4 < _cost_in_hu(x.to(torch.float16), x) <= 0.51
    tf32 = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)  # 10 bits of mantissa
    assert 0.4 < _cost_in_hu(tf32, x) <= 0.51
    # So codes themselves do not survive bf16: most of bone and air is off by a HU or more.
    codes = torch.from_numpy(HUScale().encode(CODES)).to(torch.bfloat16).float().numpy()
    assert np.mean(HUScale().decode_codes(codes) != CODES) > 0.5


@pytest.mark.parametrize("bad", [{"companding": "mu-law"}, {"lo": 70.0, "hi": -10.0}])
def test_a_bad_scale_is_a_mistake_of_the_user(bad):
    with pytest.raises(UserError):
        HUScale(**bad)
