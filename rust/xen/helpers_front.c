// SPDX-License-Identifier: GPL-2.0
/* What the frontend asks of its domain and of the kernel's PCI code; see helpers.c. */
#include <linux/dma-map-ops.h>
#include <linux/ioport.h>
#include <linux/msi.h>
#include <linux/pci.h>
#include <xen/xen-ops.h>
#include <xen/interface/xen.h>
#include <xen/interface/vcpu.h>
#include <asm/xen/hypercall.h>

#include "helpers.h"

/*
 * Xen's time (ns since its boot) when this vCPU was last switched to its
 * present run state, 0 on error.
 */
HELPER(u64, runstate_entry_time, void)
{
	struct vcpu_runstate_info info = {};
	unsigned long flags;
	int err;

	local_irq_save(flags);
	err = HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info,
				 xen_vcpu_nr(smp_processor_id()), &info);
	local_irq_restore(flags);
	return err ? 0 : info.state_entry_time;
}

/* The guest's MSI-X entry numbers that are still without a vector. */
HELPER(int, msix_wanted, struct pci_dev *dev, u16 *entries, int max)
{
	struct msi_desc *desc;
	int count = 0;

	msi_for_each_desc(desc, &dev->dev, MSI_DESC_NOTASSOCIATED) {
		if (count == max)
			break;
		entries[count++] = desc->msi_index;
	}
	return count;
}

/* @release gets the bridge, with @data as its release_data, when its last user is gone. */
HELPER(void, on_bridge_release, struct pci_bus *bus,
       void (*release)(struct pci_host_bridge *), void *data)
{
	pci_set_host_bridge_release(to_pci_host_bridge(bus->bridge), release, data);
}

/*
 * Notes the state of a function's channel as the core does it, who has no lock for
 * that: one that is lost stays lost, and false says so.
 */
HELPER(bool, pci_note_error_state, struct pci_dev *dev, pci_channel_state_t state)
{
	pci_channel_state_t old = READ_ONCE(dev->error_state);

	do {
		if (old == pci_channel_io_perm_failure)
			return state == pci_channel_io_perm_failure;
	} while (!try_cmpxchg(&dev->error_state, &old, state));
	return true;
}

HELPER(int, first_node, void)
{
	return first_online_node;
}

/* Whether the guest's memory has a part of this range, both ends included. */
HELPER(bool, is_ram, resource_size_t start, resource_size_t end)
{
	return region_intersects(start, end - start + 1, IORESOURCE_SYSTEM_RAM,
				 IORES_DESC_NONE) != REGION_DISJOINT;
}

/*
 * Whether DMA addresses of devices are translated: without the Xen swiotlb a PV
 * guest hands its own idea of addresses to the hardware.
 */
HELPER(bool, has_dma_ops, void)
{
	return get_arch_dma_ops();
}
