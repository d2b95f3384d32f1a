"""A run's trials, verdict and champion in an experiment tracker."""
