"""Objectives as users write them by mistake."""


def summed(terms, config):
    return terms.ratio.sum()


def misspelt(terms, config):
    return terms.ratios
