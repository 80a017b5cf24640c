# SPDX-License-Identifier: GPL-2.0
#
# The two library crates, for one driver. A driver's Kbuild sets
#	xenpci-driver := xen_pciback
#	xenpci-end := back
# and includes this file; it then lists $(xenpci-lib-objs) among its objects and
# adds $(xenpci-lib-flags) to its Rust flags.
#
# Each driver gets its own copy of the libraries, in its own object directory:
# `-Cmetadata` carries the driver's name into every mangled Rust symbol and
# XENPCI_PREFIX carries it into every C helper. So two copies never clash,
# whether both drivers are modules, both are built in, or one of each; and no
# third module has to be shipped or loaded first.
#
# A copy has only what its driver uses: every function of the crates is compiled
# with the driver that calls it (-Zcross-crate-inline-threshold=always), and not
# at all when nothing does. C helpers of one end are linked with that end (back or
# front), so what calls them has to be left out of the other. As most of the code
# is for what seldom happens, only small functions are copied into several callers
# (LLVM's own threshold is 225).

xenpci-rust := $(src)/../../../rust
xenpci-lib-objs := lib_pciif.o lib_xen.o lib_helpers.o $(xenpci-end:%=lib_helpers_%.o)
xenpci-small := -Cllvm-args=-inline-threshold=50
xenpci-lib-flags = $(xenpci-small) -L $(obj) --extern pciif --extern xen -Dwarnings

export XENPCI_BINDINGS := $(abspath $(obj))/../../../rust/xen_bindings_generated.rs

# The text of `uname -v` of the kernel that the modules are for, as a Rust
# literal; the Makefile passes it, empty when it is not known.
filechk_uts_version = echo '"$(XENPCI_UTS_VERSION)"'
$(obj)/uts_version.rs: FORCE
	$(call filechk,uts_version)
export XENPCI_UTS_FILE := $(abspath $(obj))/uts_version.rs

# Differences between kernels stand in rust/xen/compat.rs under `since_A_B`: Linux A.B
# brought them. Those that this kernel has are set.
xenpci-steps := $(shell grep -o 'since_[0-9]*_[0-9]*' $(xenpci-rust)/xen/compat.rs | sort -u)
xenpci-since = $(shell echo '$(VERSION) $(PATCHLEVEL) $(1)' | tr _ ' ' | \
	awk '$$1 > $$4 || $$1 == $$4 && $$2 >= $$5 { print "--cfg=$(1)" }')
xenpci-version := $(foreach step,$(xenpci-steps),--check-cfg='cfg($(step))' $(call xenpci-since,$(step)))

xenpci-lib-cmd = $(rust_common_cmd) -Cmetadata=$(xenpci-driver) -L $(obj) -Dwarnings \
		-Zcross-crate-inline-threshold=always --emit=obj=$@

quiet_cmd_rustc_pciif = RUSTC L $(quiet_modtag) $@
      cmd_rustc_pciif = $(xenpci-lib-cmd) --crate-name pciif -Aunused_attributes -Aclippy::duplicated_attributes \
		--emit=metadata=$(obj)/libpciif.rmeta $< $(cmd_objtool)

quiet_cmd_rustc_xen = RUSTC L $(quiet_modtag) $@
      cmd_rustc_xen = XENPCI_DRIVER=$(xenpci-driver) $(xenpci-lib-cmd) $(xenpci-version) --crate-name xen \
		--extern pciif --emit=metadata=$(obj)/libxen.rmeta $< $(cmd_objtool)

$(obj)/lib_pciif.o: $(xenpci-rust)/pciif/src/lib.rs FORCE
	+$(call if_changed_dep,rustc_pciif)

$(obj)/lib_xen.o: $(xenpci-rust)/xen/lib.rs $(obj)/lib_pciif.o FORCE
	+$(call if_changed_dep,rustc_xen)

$(foreach o,$(filter lib_helpers%,$(xenpci-lib-objs)),\
	$(eval CFLAGS_$(o) := -DXENPCI_PREFIX=$(xenpci-driver)_))
$(obj)/lib_%.o: $(xenpci-rust)/xen/%.c FORCE
	$(call if_changed_rule,cc_o_c)

targets += $(xenpci-lib-objs)
clean-files += libpciif.rmeta libxen.rmeta uts_version.rs
