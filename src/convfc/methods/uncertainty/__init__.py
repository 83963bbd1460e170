"""Uncertainty of networks, with methods for FC layers that the patch form gives CONV layers.

============== ==================================================================================
`layers`       FC layers with a random weight: Monte Carlo dropout, Concrete Dropout, Gaussian
`networks`     networks of such layers, and ordinary networks drawn from them
`prediction`   many draws, and the parts of their uncertainty: of images, of pixels, of values
`scores`       accuracy, likelihood, calibration, foreign images; reliability diagrams (matplotlib)
============== ==================================================================================

Laplace approximations come from laplace-torch, and Bayesian layers of other kinds from
bayesian-torch: they work on the patch form as it is; ``docs/uncertainty.md`` shows both.
"""

from convfc.extras import needing

with needing():
    from convfc.methods.uncertainty.layers import (
        ConcreteDropoutLinear,
        DropoutLinear,
        GaussianLinear,
        RandomLinear,
    )
    from convfc.methods.uncertainty.networks import (
        kl,
        learned_rates,
        mean_network,
        sample,
        to_bayesian,
    )
    from convfc.methods.uncertainty.prediction import (
        Prediction,
        RegressionPrediction,
        predict,
    )
    from convfc.methods.uncertainty.scores import (
        Calibration,
        accuracy,
        brier_score,
        calibration,
        negative_log_likelihood,
        out_of_distribution_auroc,
        reliability_figure,
    )

__all__ = [
    "Calibration",
    "ConcreteDropoutLinear",
    "DropoutLinear",
    "GaussianLinear",
    "Prediction",
    "RandomLinear",
    "RegressionPrediction",
    "accuracy",
    "brier_score",
    "calibration",
    "kl",
    "learned_rates",
    "mean_network",
    "negative_log_likelihood",
    "out_of_distribution_auroc",
    "predict",
    "reliability_figure",
    "sample",
    "to_bayesian",
]
