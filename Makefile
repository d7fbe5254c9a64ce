# People and CI use the same commands. `make help` lists them.

PG ?= 15
TESTNAME ?=
export PG

# Only a PG_CONFIG that was typed counts: one that happens to be in the environment must not
# send the tests into a PostgreSQL that is in use.
ifneq ($(origin PG_CONFIG),command line)
unexport PG_CONFIG
override PG_CONFIG :=
endif

.DEFAULT_GOAL := help
.PHONY: help demo examples test test-pool audit-pgrls attacks-mutation torture torture-bugs fuzz test-core install run bench bench-live bench-soak lint package clean setup

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PG=15 (default), 16, 17 or 18 chooses the PostgreSQL."
	@echo "  All but install use a private PostgreSQL below ~/.cache/tenant_rls (root: /var/cache/tenant_rls; TENANT_RLS_CACHE moves it)."

demo: ## A private throwaway cluster with a tour; leaves it running
	@scripts/setup $(PG)
	@scripts/install $(PG) run
	@scripts/demo

examples: ## The programs in examples/, tested against a private throwaway cluster
	@scripts/setup --examples $(PG)
	@scripts/install $(PG) run
	@scripts/examples

# Dumps and pg_upgrade come from 15; beyond 16 from 16 too: not every minor of 15 can be upgraded from.
test: ## Everything; TESTNAME=… for the tests with that in their name
	@scripts/setup 15 $(if $(filter 17 18,$(PG)),16) $(filter-out 15,$(PG))
	@scripts/test $(PG) $(TESTNAME)

test-pool: ## 200 clients over PgBouncer, a minute in each mode
	@scripts/setup 15 $(filter-out 15,$(PG))
	@TENANT_RLS_POOL_SECONDS=60 RUST_TEST_NOCAPTURE=1 scripts/test $(PG) mode_mixes_nothing

audit-pgrls: ## tenant_audit beside pgrls, on the same broken databases, code by code
	@scripts/setup --pgrls 15 $(filter-out 15,$(PG))
	@scripts/audit-pgrls $(PG)

attacks-mutation: ## Take the guards out one by one; how many attacks notice
	@scripts/setup 15
	@scripts/mutate-attacks 15

SECONDS ?= 600
torture: ## Kills servers for SECONDS=600 while clients use quotas; TENANT_RLS_TORTURE_BUG=… puts a bug in
	@scripts/setup 15 $(filter-out 15,$(PG))
	@scripts/torture $(PG) $(SECONDS) $(TENANT_RLS_TORTURE_BUG)

torture-bugs: ## Each bug of scripts/torture-bugs.txt, until torture finds it, SECONDS=600 at most
	@scripts/setup 15
	@scripts/torture 15 $(SECONDS) all

# The tests named fuzz_, this often each.
FUZZ_CASES ?= 1000000
fuzz: ## Ten million random texts and more for the parsers of what clients send
	@scripts/setup $(PG)
	@scripts/fuzz $(PG) $(FUZZ_CASES)

test-core: ## The server's own regression tests with tenant_rls loaded, in three ways
	@scripts/setup $(PG)
	@scripts/setup --source $(PG)
	@scripts/install $(PG) run
	@scripts/test-core $(PG)

install: ## Build a release and install it into PG_CONFIG=… (default: the first pg_config in PATH)
	@scripts/setup
	@scripts/install --into $(or $(PG_CONFIG),pg_config)

run: ## A private cluster with the extension, and psql
	@scripts/setup $(PG)
	@scripts/install $(PG) run
	@scripts/cluster start
	@scripts/cluster psql -- -q -c 'CREATE EXTENSION IF NOT EXISTS tenant_rls'
	@scripts/cluster psql
	@echo "The cluster is still running; stop it with: scripts/cluster stop"

bench: ## Measure, into bench/results/
	@scripts/setup --bench $(PG)
	@scripts/install $(PG) run
	@bench/run

bench-live: ## How long writers wait while a table of 10 million rows is protected
	@scripts/setup $(PG)
	@scripts/install $(PG) run
	@bench/live

bench-soak: ## Memory of the server's processes during ten minutes of quotas at full rate
	@scripts/setup $(PG)
	@scripts/install $(PG) run
	@bench/soak

lint: ## rustfmt, clippy, rustdoc, cargo-deny, pgspot, shellcheck
	@scripts/setup --lint $(PG)
	@scripts/lint

package: ## dist/tenant_rls-<version>-pg<major>-<arch>.tar.gz
	@scripts/setup $(PG)
	@scripts/package $(PG)

clean: ## Stop and delete our clusters; delete target/ and dist/
	@scripts/cluster destroy --all
	@rm -rf target dist

setup: ## Only install what is missing
	@scripts/setup $(PG)
