"""Writes `crates/privacy/tests/data/renyi_reference.csv`: Rényi divergences by mpmath at 40 digits, and by others.

    .venv/bin/python scripts/renyi_reference.py > crates/privacy/tests/data/renyi_reference.csv

`exact`: of removing a unit, by adaptive quadrature of the definition. `dp_accounting`, `opacus`: what 0.6.0 and 1.6.0
say, in doubles. Empty where one has no such mechanism or does not converge. At orders between whole ones dp_accounting
adds the moduli of a sum whose signs alternate, and so lies above.
"""

import math

import mpmath
from dp_accounting.rdp import rdp_privacy_accountant as google
from opacus.accountants.analysis import rdp as opacus

mpmath.mp.dps = 40
ORDERS = [1.1, 1.5, 2.0, 2.7, 4.5, 10.9, 17.0, 63.0, 256.0]
GAUSSIANS = [
    (1.0, 0.01),
    (1.5, 0.04),
    (0.5, 1e-4),
    (0.3, 1e-6),
    (10.0, 0.2),
    (100.0, 1e-6),
    (2.0, 0.9),
    (0.7, 0.3),
    (5.0, 1.0),
]
LAPLACES = [(1.0, 1.0), (0.1, 1.0), (50.0, 1.0), (1.0, 0.01), (0.3, 0.5), (20.0, 1e-4)]


def gaussian(sigma: float, q: float, order: float) -> mpmath.mpf:
    """Ln of the moment, over order − 1."""
    s, q, a = mpmath.mpf(sigma), mpmath.mpf(q), mpmath.mpf(order)

    def excess(z: mpmath.mpf) -> mpmath.mpf:
        u = q * mpmath.expm1((2 * z - 1) / (2 * s * s))
        return mpmath.npdf(z, 0, s) * ((1 + u) ** a - 1 - a * u)

    points = {-14 * s, -4 * s, 0, 1, 4 * s, a / 2, a - 4 * s, a, a + 4 * s, a + 14 * s}
    total = mpmath.quad(excess, sorted(points), maxdegree=9)
    return mpmath.log1p(total) / (a - 1)


def laplace(scale: float, q: float, order: float) -> mpmath.mpf:
    """The larger of removing and adding."""
    b, q = mpmath.mpf(scale), mpmath.mpf(q)

    def moment(exponent: mpmath.mpf) -> mpmath.mpf:
        ratio = lambda x: 1 - q + q * mpmath.exp((2 * x - 1) / b)
        inner = mpmath.quad(
            lambda x: mpmath.exp(-x / b) / (2 * b) * ratio(x) ** exponent, mpmath.linspace(0, 1, 9), maxdegree=9
        )
        return ratio(mpmath.mpf(0)) ** exponent / 2 + mpmath.exp(-1 / b) / 2 * ratio(mpmath.mpf(1)) ** exponent + inner

    a = mpmath.mpf(order)
    return mpmath.log(max(moment(a), moment(1 - a))) / (a - 1)


def main() -> None:
    print("noise,noise_multiplier,sampling_probability,order,exact,dp_accounting,opacus")
    for sigma, q in GAUSSIANS:
        for order in ORDERS:
            exact = gaussian(sigma, q, order)
            ours = google._compute_rdp_poisson_subsampled_gaussian(q, sigma, [order])[0]
            try:
                theirs = opacus._compute_rdp(q, sigma, order)
            except (OverflowError, ValueError, ZeroDivisionError):
                theirs = math.inf
            cells = [repr(float(v)) if math.isfinite(v) else "" for v in (exact, ours, theirs)]
            print(f"gaussian,{sigma},{q},{order},{','.join(cells)}", flush=True)
    for scale, q in LAPLACES:
        for order in ORDERS:
            theirs = repr(float(google._laplace_rdp(1 / scale, order))) if q == 1.0 else ""
            print(f"laplace,{scale},{q},{order},{float(laplace(scale, q, order))!r},{theirs},", flush=True)


if __name__ == "__main__":
    main()
