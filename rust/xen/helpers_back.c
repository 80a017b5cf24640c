// SPDX-License-Identifier: GPL-2.0
/* What the backend asks of a function of the host; see helpers.c. */
#include <linux/blkdev.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/vgaarb.h>
#include <xen/interface/xen.h>
#include <xen/interface/memory.h>
#include <xen/interface/physdev.h>
#include <asm/xen/hypercall.h>

#include "helpers.h"

/* PHYSDEVOP_prepare_msix or _release_msix; the caller has seen the capability. */
HELPER(int, physdev_msix, struct pci_dev *dev, bool prepare)
{
	struct physdev_pci_device arg = {
		.seg = pci_domain_nr(dev->bus),
		.bus = dev->bus->number,
		.devfn = dev->devfn,
	};

	return HYPERVISOR_physdev_op(prepare ? PHYSDEVOP_prepare_msix :
					       PHYSDEVOP_release_msix, &arg);
}

/* Xen keeps a domain until the last reference to it and to its memory is gone. */
HELPER(bool, domain_exists, u16 domid)
{
	domid_t arg = domid;

	return HYPERVISOR_memory_op(XENMEM_current_reservation, &arg) != -ESRCH;
}

/* 1: driver_override names this driver, 0: names another, <0: not set. */
HELPER(int, match_driver_override, struct device *dev, const struct device_driver *drv)
{
	return device_match_driver_override(dev, drv);
}

HELPER(int, pci_domain, struct pci_dev *dev)
{
	return pci_domain_nr(dev->bus);
}

HELPER(bool, pci_is_enabled, struct pci_dev *dev)
{
	return pci_is_enabled(dev);
}

HELPER(bool, pci_is_vf, struct pci_dev *dev)
{
	return dev->is_virtfn;
}

HELPER(bool, pci_is_bus_master, struct pci_dev *dev)
{
	return dev->is_busmaster;
}

HELPER(bool, pci_msi_on, struct pci_dev *dev)
{
	return dev->msi_enabled;
}

HELPER(bool, pci_msix_on, struct pci_dev *dev)
{
	return dev->msix_enabled;
}

HELPER(struct pci_dev *, pci_physfn, struct pci_dev *dev)
{
	return pci_physfn(dev);
}

HELPER(void, pci_set_assigned, struct pci_dev *dev, bool on)
{
	if (on)
		pci_set_dev_assigned(dev);
	else
		pci_clear_dev_assigned(dev);
}

HELPER(const char *, pci_name, const struct pci_dev *dev)
{
	return pci_name(dev);
}

HELPER(int, msix_exact, struct pci_dev *dev, struct msix_entry *entries, int count)
{
	return pci_enable_msix_exact(dev, entries, count);
}

/* What a search for users of a device has found. */
struct pci_use {
	char *text;
	int size;
};

/*
 * A device below @dev that somebody uses now. Devices of other modules are
 * known by the names of their classes: the classes themselves are not exported.
 */
static int find_use(struct device *dev, void *data)
{
	const char *class = dev->class ? dev->class->name : "";
	struct pci_use *use = data;

	if (!strcmp(class, "net") && (to_net_dev(dev)->flags & IFF_UP))
		return scnprintf(use->text, use->size, "network interface %s is up",
				 dev_name(dev));
	if (!strcmp(class, "block") && dev->type && !strcmp(dev->type->name, "disk") &&
	    disk_openers(dev_to_disk(dev)))
		return scnprintf(use->text, use->size, "disk %s is mounted or open",
				 dev_name(dev));
	if (!strcmp(class, "tty"))
		return scnprintf(use->text, use->size, "%s may be a console", dev_name(dev));
	return device_for_each_child(dev, use, find_use);
}

/* Whether this kernel itself uses @dev; @text then says what for. */
HELPER(bool, pci_user, struct pci_dev *dev, char *text, int size)
{
	struct pci_use use = { text, size };

	if (dev == vga_default_device()) {
		scnprintf(text, size, "it is the console's display");
		return true;
	}
	return device_for_each_child(&dev->dev, &use, find_use) != 0;
}

/* Another function with memory in a page of one of @dev's BARs; a reference. */
HELPER(struct pci_dev *, pci_page_neighbour, struct pci_dev *dev, int *bar)
{
	struct pci_dev *other = NULL;
	struct resource *r, *s;
	bool partial = false;

	pci_dev_for_each_resource(dev, r)
		partial |= (resource_type(r) == IORESOURCE_MEM) && r->start &&
			   (!PAGE_ALIGNED(r->start) || !PAGE_ALIGNED(r->end + 1));
	if (!partial)
		return NULL;
	for_each_pci_dev(other) {
		if (other == dev || other->hdr_type != PCI_HEADER_TYPE_NORMAL)
			continue;
		for (int i = 0; i <= PCI_ROM_RESOURCE; i++) {
			r = &dev->resource[i];
			if (resource_type(r) != IORESOURCE_MEM || !r->start || r->end < r->start)
				continue;
			for (int j = 0; j <= PCI_ROM_RESOURCE; j++) {
				s = &other->resource[j];
				if (resource_type(s) == IORESOURCE_MEM && s->start &&
				    s->end >= s->start &&
				    (r->start >> PAGE_SHIFT) <= (s->end >> PAGE_SHIFT) &&
				    (s->start >> PAGE_SHIFT) <= (r->end >> PAGE_SHIFT)) {
					*bar = i;
					return other;
				}
			}
		}
	}
	return NULL;
}

/* What a search for a neighbour on a line wants, and has found. */
struct pci_line {
	struct pci_dev *dev;
	struct pci_dev *other;
};

static int find_on_line(struct device *device, void *data)
{
	struct pci_dev *other = to_pci_dev(device);
	struct pci_line *line = data;
	struct pci_dev *dev = line->dev;

	if (other == dev || !other->pin || other->irq != dev->irq || other->msi_enabled ||
	    other->msix_enabled || !device->driver || device->driver == dev->dev.driver)
		return 0;
	line->other = pci_dev_get(other);
	return 1;
}

/*
 * Another function with the same legacy interrupt and another driver; a reference.
 * Every function that is taken asks, so this walks in the cheapest way there is.
 */
HELPER(struct pci_dev *, pci_line_neighbour, struct pci_dev *dev)
{
	struct pci_line line = { dev, NULL };

	if (dev->pin && dev->irq && dev->irq != IRQ_NOTCONNECTED)
		bus_for_each_dev(&pci_bus_type, NULL, &line, find_on_line);
	return line.other;
}

HELPER(bool, irq_is_connected, unsigned int irq)
{
	return irq && irq != IRQ_NOTCONNECTED;
}

/* For a handler on the interrupt while it runs: its action, and so the interrupt, stays. */
HELPER(bool, irq_has_only, unsigned int irq, irq_handler_t handler)
{
	struct irq_data *data = irq_get_irq_data(irq);
	struct irqaction *action = data ? READ_ONCE(irq_data_to_desc(data)->action) : NULL;

	if (!action)
		return false;
	for (; action; action = READ_ONCE(action->next))
		if (action->handler != handler)
			return false;
	return true;
}

/*
 * Ends a disable_irq_nosync() of a handler that was freed since, for other handlers of the
 * interrupt. Without any there is nothing to do: the next first one starts it enabled, before its
 * action can be seen here. A driver that comes first in this very moment, and disables it at once,
 * cannot be told from one that was there.
 */
HELPER(void, irq_resume_others, unsigned int irq)
{
	struct irq_data *data = irq_get_irq_data(irq);

	if (!data || !READ_ONCE(irq_data_to_desc(data)->action))
		return;
	smp_rmb();
	if (irqd_irq_disabled(data))
		enable_irq(irq);
}

HELPER(int, request_shared_irq, unsigned int irq, irq_handler_t handler, const char *name,
       void *cookie)
{
	return request_irq(irq, handler, IRQF_SHARED, name, cookie);
}

HELPER(bool, pci_is_pf, struct pci_dev *dev)
{
	return dev->is_physfn && pci_num_vf(dev);
}
