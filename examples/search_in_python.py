"""A search in Python: runs as a script, and as a notebook by its cells.

    python examples/search_in_python.py

VS Code, PyCharm and Jupyter (by jupytext) read the marks of cells. Expected: a
network file in runs/example, after a minute or two on two cores.
"""

# %% [markdown]
# # From a device to a network file
#
# The config names the device, the space and the data. `runlocal` makes all
# small enough for a laptop; leave it out for a real search.

# %%
import hwdarts_jax as hw

SOURCE = 'configs/pixel4.py:runlocal'
OVERRIDES: dict = {}
FOLDER = 'runs/example'

config = hw.load_config(SOURCE, OVERRIDES)

# %% [markdown]
# ## Search
#
# A search trades the loss of the supernet for expected latency on the device.

# %%
found = hw.search(config, f'{FOLDER}/search')
print(found.genotype, f'{found.predicted_ms:.2f} ms')

# %% [markdown]
# What was traded stands in the record, next to how good the predictor is.

# %%
deploy = found.record['deploy']
print('held-out error of the predictor:', deploy['predictor']['held_out'])
print('slower than it are', deploy['slower_random_percent'], '% of random ones')

# %% [markdown]
# ## Train what was found, and write its files

# %%
trained = hw.retrain(config, found, f'{FOLDER}/trained')
print(f'test accuracy {100 * trained.test_accuracy:.1f} %')

# %%
exported = hw.export(config, trained, f'{FOLDER}/exported')
print(*exported.files.values(), sep='\n')
