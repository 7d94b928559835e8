r"""Our decoders for sinter's command line.

Name this module's function there::

    sinter collect --circuits *.stim --decoders symdyn \
        --custom_decoders_module_function "symdyn_qec.sinter:decoders"
"""

from importlib.util import find_spec

import sinter

from symdyn_qec.baselines.registry import DECODERS, decoder_info, make_decoder

# What the small network may ask.
SECONDS = ("symdyn", "relay-bp-5", "tesseract")


def decoders() -> dict[str, sinter.Decoder]:
    """Return the decoders by name, as ``sinter.collect(custom_decoders=...)`` takes them.

    Those that need a package which is not installed are left out, and those that sinter brings itself.

    >>> "symdyn" in decoders(), "symdyn-fast+symdyn" in decoders(), "pymatching" in decoders()
    (True, True, False)
    """
    names = [*DECODERS, "min-sum+symdyn", *(f"symdyn-fast+{name}" for name in SECONDS)]
    needed = {name: decoder_info(name).module for name in names if name not in sinter.BUILT_IN_DECODERS}
    return {
        name: make_decoder(name) for name, module in needed.items() if module is None or find_spec(module)
    }
