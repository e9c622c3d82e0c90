"""The three descriptors of one trajectory, from their definitions, with SciPy's rank correlation."""

import numpy as np
from scipy.stats import spearmanr


def descriptors(entropies):
    """(S_H, V_sp, a_vnr) of one trajectory, as EDRM section 3 defines them."""
    h = np.asarray(entropies, dtype=np.float64)
    total = float(h.sum())
    if len(h) < 3 or np.all(h == h[0]):
        return total, 0.0, 2.0
    trend = spearmanr(np.arange(len(h)), h).statistic
    return total, float(trend), float((np.diff(h) ** 2).sum() / ((h - h.mean()) ** 2).sum())


def rule(point, total=32.0, band=0.07, smooth=2.0):
    """The zero-shot rule as it is printed in the plan of the paper."""
    s, v, a = point
    if s > total:
        return "direct"
    if v < -band and a < smooth:
        return "cot"
    if v > band:
        return "direct"
    return "standard"
