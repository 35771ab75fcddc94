"""The embedded default data: a parametric chest, its X-ray films, its reports and its institutions."""
