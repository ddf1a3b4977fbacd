"""HiPPO-LegS in normal-plus-low-rank form, the usual start of a structured state space."""

import numpy as np
import torch
from torch import Tensor


def legs_normal(n: int) -> tuple[Tensor, Tensor]:
    """Eigendecomposition of the normal part S of HiPPO-LegS, in float64.

    LegS is A[j, k] = −√(2j+1)√(2k+1) below the diagonal, −(j+1) on it; with P[j] = √(j + ½), S = A + PPᵀ
    equals −½ I plus a skew-symmetric matrix, so that its eigenvectors are orthonormal.

    Returns:
        eigenvalues (2, n) planar, by ascending imaginary part (conjugates mirrored about the middle), and
        eigenvectors V (2, n, n) planar, one per column: S = V diag(λ) V*.
    """
    j = np.arange(n)
    root = np.sqrt(2 * j + 1)
    skew = np.tril(-np.outer(root, root), -1) / 2
    skew = skew - skew.T  # S + ½ I
    imag, vectors = np.linalg.eigh(-1j * skew)
    lam = np.stack((np.full(n, -0.5), imag))
    return torch.from_numpy(lam), torch.from_numpy(np.stack((np.real(vectors), np.imag(vectors))))
