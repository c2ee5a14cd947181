"""Head phantoms in Hounsfield units, each from its own seed, no two alike: procedural, or from label maps of real
heads; one tissue volume, one scanner.

`maps` reads and cleans label maps, `parts` adds what they do not name, `warp` deforms, `tissue` gives HU, `real` puts
the head together; `procedural` paints one from nothing; `heads` scans either; `write` makes files of them.
"""

from slicewise.data.phantom.heads import PHANTOM_VERSION, SIZES, Phantom, make_phantom
from slicewise.data.phantom.labels import LABELS
from slicewise.data.phantom.write import prepare_people, store_phantoms, write_each, write_phantoms
from slicewise.data.settings import PhantomSettings

__all__ = [
    "LABELS",
    "PHANTOM_VERSION",
    "SIZES",
    "Phantom",
    "PhantomSettings",
    "make_phantom",
    "prepare_people",
    "store_phantoms",
    "write_each",
    "write_phantoms",
]
