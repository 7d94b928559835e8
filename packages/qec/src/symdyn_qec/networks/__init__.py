"""Networks that predict from detectors which qubits flipped."""
