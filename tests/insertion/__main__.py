"""Prints by how much insertion changes the log-densities: ``python -m tests.insertion``."""

import copy
import warnings

from tests.insertion.models import MODELS, STATES, make


def largest_change(name: str) -> tuple[float, float]:
    """Over all positions and both states, in nats and in nats per dimension."""
    changes = [0.0]
    for state in STATES:
        original = make(name, state)
        before = original.with_model(copy.deepcopy).log_prob()
        for position in (*original.counts, list(original.counts)):
            subject = original.with_model(copy.deepcopy)
            subject.insert(["imap", "itrans"], position=position, patches=original.patches)
            changes.append((subject.log_prob() - before).abs().max().item())
    return max(changes), max(changes) / original.example[0].numel()


def main() -> None:
    warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")
    print(f"{'model':<36}{'nats':>10}{'per dim':>10}")
    for name in MODELS:
        nats, per_dim = largest_change(name)
        print(f"{name:<36}{nats:>10.1e}{per_dim:>10.1e}")


if __name__ == "__main__":
    main()
