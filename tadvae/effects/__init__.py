"""Mean effects of perturbations, by Gaussian process regression over the conditions of a store."""
