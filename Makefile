# Everything is in ./run, which works without make. Arguments: make test ARGS="tests/test_layers.py -x"
.DEFAULT_GOAL := help
COMMANDS := demo test lint check golden lock lab bench browse screenshots wheel deb clean help
.PHONY: $(COMMANDS)
$(COMMANDS):
	@./run $@ $(ARGS)
