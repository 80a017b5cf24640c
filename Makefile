# SPDX-License-Identifier: GPL-2.0
# The user's door: `make help` lists what there is. The work is done in scripts/,
# which read these from the command line or the environment.
export XENPCI_CACHE KVER KDIR KREL DESTDIR MIRROR BACK FRONT CONNECTS CYCLES READS STORM OPERATIONS SLOW JOBS
export KVER_UNTRIED PARTS VCPUS

help:
	@echo 'Xen PCI backend and frontend in Rust, for the stock kernel of Debian. Run as root:'
	@echo
	@echo '  make demo         a PCIe NIC passed through to a Xen guest (sets everything up first)'
	@echo '  make test         all tests: check, test-pure and the lab'
	@echo '  make lab          only the lab; ARGS= names cases'
	@echo '  make seeds        only the five stories of docs/: each of their steps, with its data'
	@echo '  make test-full    the same with the long cases, all kernels and other peers; goes on where it was'
	@echo '                    interrupted; PARTS= names parts, see tests/README.md'
	@echo '  make soak         100 guests for each backend, all have to connect (CONNECTS=); 10 000 rounds of bind and unbind (CYCLES=)'
	@echo '  make bench        both drivers against the stock ones: table, build/bench/result.json and bench.svg'
	@echo '  make bench-quick  the same with less of everything, in less than ten minutes'
	@echo '  make shell        the console of dom0 in the lab, with a guest running'
	@echo
	@echo '  make setup        only fill the cache: root file system, kernel, Rust metadata'
	@echo '  make kernels      the supported kernels, and what the archive and the cache have of them'
	@echo '  make modules      build/<kernelrelease>/xen-pciback.ko and xen-pcifront.ko'
	@echo '  make install      put them into /lib/modules/<kernelrelease>/updates'
	@echo '  make uninstall    take them out again'
	@echo '  make install-service, uninstall-service    xen-pciback-setup: see docs/seed-1.md'
	@echo '  make kernel       a small kernel with both drivers in its tree: see docs/in-tree.md'
	@echo '  make check        format, lints, where unsafe may stand, licence lines'
	@echo '  make test-pure    the tests that need no Xen'
	@echo '  make clean        remove build/'
	@echo '  make distclean    the same; with CACHE=yes remove the cache, too'
	@echo
	@echo '  XENPCI_CACHE=DIR  where root file system and kernel are kept (~/.cache/xen-pci-rust)'
	@echo '  KVER=...          choose another kernel, for good: a release, a package version, a suite (sid),'
	@echo '                    a bare number of backports, or newest; KVER_UNTRIED=1 takes what nobody has tried'
	@echo '  MIRROR=URL        Debian mirror, instead of the one that the host uses'
	@echo '  KDIR=DIR          modules: build on the host with headers that ship Rust metadata'
	@echo '  KREL=RELEASE      install, uninstall: another kernel than the running one'
	@echo '  DESTDIR=DIR       install, uninstall: below another root'
	@echo '  BACK=c FRONT=c    lab: the stock driver at that end (default: rust)'
	@echo '  JOBS=N            lab: machines at once (default: one for each CPU, four at most)'
	@echo '  VCPUS=N           lab: 1 or 2 virtual CPUs for every dom0 (default: each kind of machine has its own)'
	@echo '  SLOW=SECONDS      lab: name each command of dom0 that takes so long'
	@echo '  ARGS=...          demo, lab, shell: arguments for the runner, such as names of cases'

setup:
	@scripts/setup root kernel
kernels:
	@scripts/list-kernels
modules:
	@scripts/modules --running
install:
	@scripts/install
uninstall:
	@scripts/install --remove
install-service:
	@scripts/install --service
uninstall-service:
	@scripts/install --service --remove
kernel:
	@scripts/kernel
seeds:
	@scripts/lab run $(or $(ARGS),seed_)
check:
	@scripts/check
test-pure:
	@scripts/test pure
lab:
	@scripts/lab run $(ARGS)
bench:
	@scripts/lab bench $(ARGS)
bench-quick:
	@scripts/lab bench --quick $(ARGS)
demo shell:
	@scripts/lab $@ $(ARGS)
soak:
	@CONNECTS=$(or $(CONNECTS),100) CYCLES=$(or $(CYCLES),10000) scripts/lab run every_guest_connects check_22
test:
	@scripts/test check pure lab+kernels
test-full:
	@scripts/test --go-on check pure kernels-all lab-full lab-one-cpu smoke peers intree-modules stock-seeds
clean:
	rm -rf build
distclean: clean
	$(if $(filter yes,$(CACHE)),scripts/setup remove,@echo 'the cache stays: CACHE=yes removes it')

.PHONY: help setup kernels modules install uninstall install-service uninstall-service kernel seeds check test-pure lab bench bench-quick demo shell soak test test-full clean distclean
.DEFAULT_GOAL := help
