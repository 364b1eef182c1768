# Every target runs in the environment of tools/dials-env, which sets up what is missing.

RUN := tools/dials-env
# two tests at a time, those of one file together; further arguments to pytest by
# make test PYTEST="-k frames --require=dials"
WORKERS := -n 2 --dist loadfile
PYTEST :=

.PHONY: help demo docs test test-all coverage doctests dist lint format types clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: ## the main job from end to end on a small virtual sample (under 3 minutes)
	$(RUN) python examples/demo.py

docs: ## the manual; start at build/docs/index.html
	$(RUN) python -m sphinx -E -W --keep-going -q -b html docs build/docs

# two workers of two threads each would wait for each other in every layer of a network
test test-all coverage: export OMP_NUM_THREADS = 1

test: ## all tests but the slow ones
	$(RUN) python -m pytest -m "not slow" $(WORKERS) $(PYTEST)

test-all: ## the slow tests too
	$(RUN) python -m pytest $(WORKERS) $(PYTEST)

# what stands without DIALS, of which so much must be covered; the rest is only counted
WITHOUT_DIALS := --omit="command_line/*,phil/*,anacor_dials/diffraction/*,anacor_dials/simulation/diffraction_data.py,anacor_dials/simulation/diffraction_images.py,anacor_dials/simulation/i23.py"
LEAST_COVERAGE := 90

coverage: ## the tests of "make test", with the lines that they run
	$(RUN) python -m pytest -m "not slow" $(WORKERS) --cov --cov-report= $(PYTEST)
	$(RUN) python -m coverage report
	@echo "Without what needs DIALS (at least $(LEAST_COVERAGE) %):"
	$(RUN) python -m coverage report $(WITHOUT_DIALS) --fail-under=$(LEAST_COVERAGE) --format=total

doctests: ## the examples in docstrings
	$(RUN) python -m pytest --doctest-modules anacor_dials --ignore=anacor_dials/simulation/blender_scene.py

dist: ## wheel and source distribution, in dist/
	$(RUN) python -c "import setuptools.build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"

lint: ## style and formatting of the whole tree
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: ## put the formatting and the order of imports right
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: ## static types
	$(RUN) mypy

clean: ## remove what was built here, but not the environment's root
	rm -rf .dials-env .mypy_cache .pytest_cache .ruff_cache .coverage build dist demo docs/generated *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
