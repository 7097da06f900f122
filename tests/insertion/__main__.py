"""Prints by how much insertion changes the log-densities: ``python -m tests.insertion``."""

import warnings

from tests.insertion.models import MODELS, STATES, make


def largest_change(name: str) -> tuple[float, float]:
    """In both states, with layers at all positions, in nats and in nats per dimension."""
    changes = [0.0]
    for state in STATES:
        before, subject = make(name, state).log_prob(), make(name, state)
        subject.insert_everywhere()
        changes.append((subject.log_prob() - before).abs().max().item())
    return max(changes), max(changes) / subject.example[0].numel()


def main() -> None:
    warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")
    print(f"{'model':<36}{'nats':>10}{'per dim':>10}")
    for name in MODELS:
        nats, per_dim = largest_change(name)
        print(f"{name:<36}{nats:>10.1e}{per_dim:>10.1e}")


if __name__ == "__main__":
    main()
