"""The interfaces that authors of modules and projections implement and call.

Read them in this order: space, state, settings, objective, module, chain, projection, writer.
Import their public names from `projcore`.
"""
