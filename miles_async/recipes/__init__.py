"""Recipes: what to hand to Slurm, Kubernetes, docker compose or a shell, so that a launch runs on several machines.

A recipe is a template (``templates/``) that is filled with a job (``job.py``), whose number of machines follows from the
configuration (``sizing.py``). Pure: configuration in, text out; who hands it over is ``miles_async/cli/recipes.py``.
"""
