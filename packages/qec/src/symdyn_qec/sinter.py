r"""Our decoders for sinter's command line.

Name this module's function there::

    sinter collect --circuits *.stim --decoders symdyn \
        --custom_decoders_module_function "symdyn_qec.sinter:decoders"
"""

import sinter

from symdyn_qec.decoder import SymdynDecoder


def decoders() -> dict[str, sinter.Decoder]:
    """Return the decoders by name, as ``sinter.collect(custom_decoders=...)`` takes them.

    >>> sorted(decoders())
    ['symdyn']
    """
    return {"symdyn": SymdynDecoder()}
