"""The contracts: what authors of modules and projections read.

In this order: space, state, settings, objective, module, chain, projection, writer. Their public
names are imported from `projcore`.
"""
