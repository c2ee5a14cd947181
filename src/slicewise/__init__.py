"""Whole head CT volumes, slice by slice, in the full 12-bit range.

    import slicewise

    model = slicewise.load_denoiser(slicewise.release.CHECKPOINT)
    for volume in slicewise.generate_volumes(model, count=4, seed=7):
        slicewise.write_series(volume, …)

The names below are the library; all else may change from one version to the next. They are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slicewise import release as release
    from slicewise.calibrate import calibrate_volume as calibrate_volume
    from slicewise.checkpoint import load_icnet as load_icnet
    from slicewise.data.heads import SyntheticHeads as SyntheticHeads
    from slicewise.data.phantom import LABELS as LABELS
    from slicewise.data.phantom import Phantom as Phantom
    from slicewise.data.phantom import make_phantom as make_phantom
    from slicewise.data.settings import PhantomSettings as PhantomSettings
    from slicewise.errors import UserError as UserError
    from slicewise.evaluation.evaluate import evaluate as evaluate
    from slicewise.fill import fill_volume as fill_volume
    from slicewise.generate import generate_volumes as generate_volumes
    from slicewise.hu import HUScale as HUScale
    from slicewise.hu import Window as Window
    from slicewise.io.archive import read_one as read_volume  # noqa: F401
    from slicewise.io.dicom_write import SyntheticOrigin as SyntheticOrigin
    from slicewise.io.dicom_write import write_series as write_series
    from slicewise.io.nifti import write_nifti as write_nifti
    from slicewise.pyramid import load_generator as load_denoiser  # noqa: F401
    from slicewise.sampling import ChainSettings as ChainSettings
    from slicewise.volume import Acquisition as Acquisition
    from slicewise.volume import Volume as Volume

__version__ = "0.2.0"

# The module of every public name, and the name there where it is another.
_PUBLIC = {
    "Acquisition": "slicewise.volume",
    "ChainSettings": "slicewise.sampling",
    "HUScale": "slicewise.hu",
    "LABELS": "slicewise.data.phantom",
    "Phantom": "slicewise.data.phantom",
    "PhantomSettings": "slicewise.data.settings",
    "SyntheticHeads": "slicewise.data.heads",
    "SyntheticOrigin": "slicewise.io.dicom_write",
    "UserError": "slicewise.errors",
    "Volume": "slicewise.volume",
    "Window": "slicewise.hu",
    "calibrate_volume": "slicewise.calibrate",
    "evaluate": "slicewise.evaluation.evaluate",
    "fill_volume": "slicewise.fill",
    "generate_volumes": "slicewise.generate",
    "load_denoiser": "slicewise.pyramid:load_generator",
    "load_icnet": "slicewise.checkpoint",
    "make_phantom": "slicewise.data.phantom",
    "read_volume": "slicewise.io.archive:read_one",
    "release": "slicewise.release:",
    "write_nifti": "slicewise.io.nifti",
    "write_series": "slicewise.io.dicom_write",
}
__all__ = [*sorted(_PUBLIC), "__version__", "citation"]


def __getattr__(name: str) -> Any:
    """A public name, imported now (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'slicewise' has no attribute {name!r}")
    module, colon, other = _PUBLIC[name].partition(":")
    found = import_module(module)
    return found if colon and not other else getattr(found, other or name)


def __dir__() -> list[str]:
    return sorted(__all__)


def citation() -> str:
    """BibTeX of the method's paper and of this software."""
    return f"""@inproceedings{{jeong2023ascii,
  author    = {{Jeong, J. and Kim, K. D. and Nam, Y. and Cho, K. and Kang, J. and Hong, G.-S. and Kim, N.}},
  title     = {{Generating High-Resolution 3D CT with 12-Bit Depth Using a Diffusion Model with Adjacent Slice and
               Intensity Calibration Network}},
  booktitle = {{Medical Image Computing and Computer Assisted Intervention (MICCAI)}},
  series    = {{LNCS 14229}},
  pages     = {{366--375}},
  year      = {{2023}},
  doi       = {{10.1007/978-3-031-43999-5_35}}
}}
@software{{slicewise,
  author  = {{{{The slicewise authors}}}},
  title   = {{slicewise: whole head CT volumes, slice by slice, in the full 12-bit range}},
  version = {{{__version__}}},
  year    = {{2026}},
  license = {{Apache-2.0}}
}}
"""
