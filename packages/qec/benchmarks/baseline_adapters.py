"""Our BP-OSD and Relay-BP against the sinter decoders that their packages ship, on the same shots.

The packages' own adapters decode all detectors; ldpc's writes shots to disk. Both are given the settings of
ours, and ldpc's, besides, the 30 iterations that comparisons often use: a rival that is easy to beat. Times
include making ready. Run: python benchmarks/baseline_adapters.py [--shots N] [--seed N]
"""

import argparse
import time
import warnings

import numpy as np
import sinter
import stim

from symdyn_qec.baselines.bposd import BpOsd
from symdyn_qec.baselines.relay import RelayBp
from symdyn_qec.benchmark import Experiment
from symdyn_qec.comparison import shot_blocks


def contenders() -> dict[str, sinter.Decoder]:
    """Return the decoders by name."""
    from ldpc.sinter_decoders import SinterBpOsdDecoder
    from relay_bp.stim import SinterDecoder_RelayBP

    common = {"bp_method": "minimum_sum", "osd_method": "OSD_CS"}
    return {
        "bposd, ours": BpOsd(),
        "bposd, ours, all detectors": BpOsd(one_sector=False),
        "bposd, ldpc's": SinterBpOsdDecoder(max_iter=1000, ms_scaling_factor=0.0, osd_order=7, **common),
        "bposd, ldpc's, 30 iterations": SinterBpOsdDecoder(
            max_iter=30, ms_scaling_factor=0.625, osd_order=0, **{**common, "osd_method": "OSD_0"}
        ),
        "relay-bp-5, ours": RelayBp(),
        "relay-bp-5, relay-bp's": SinterDecoder_RelayBP(
            gamma0=0.125, pre_iter=80, num_sets=100, stop_nconv=5
        ),
    }


def predict(decoder: sinter.Decoder, dem: stim.DetectorErrorModel, detectors: np.ndarray) -> np.ndarray:
    """Decode packed shots in memory, or by files where the decoder knows no other way."""
    try:
        compiled = decoder.compile_decoder_for_dem(dem=dem)
    except NotImplementedError:
        return sinter.predict_observables_bit_packed(
            dem=dem, dets_bit_packed=detectors, decoder="mine", custom_decoders={"mine": decoder}
        )
    return compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors)


def main() -> None:
    """Print one row per contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    case = Experiment.generate("bb72", p=0.003)
    detectors, observables = (field[: arguments.shots] for field in next(shot_blocks(case, arguments.seed)))
    print(f"{case.name}, {len(detectors)} shots")
    print(f"{'decoder':32}{'failures':>10}{'CPU s in all':>14}")
    for name, decoder in contenders().items():
        start = time.thread_time()
        predicted = predict(decoder, case.model(), detectors)
        seconds = time.thread_time() - start
        failures = int((predicted != observables).any(axis=1).sum())
        print(f"{name:32}{failures:10d}{seconds:14.2f}", flush=True)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
