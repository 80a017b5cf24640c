// SPDX-License-Identifier: GPL-2.0
/*
 * What exists in C only as a macro or an inline function: hypercalls (objtool
 * must see their call sites), domain type tests, device locking, variadic log
 * functions with a fixed format.
 *
 * Compiled once per driver; XENPCI_PREFIX (see rust/library.mk) keeps the two
 * copies apart when both drivers are built in.
 */
#include <linux/blkdev.h>
#include <linux/dma-map-ops.h>
#include <linux/interrupt.h>
#include <linux/ioport.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/msi.h>
#include <linux/ratelimit.h>
#include <linux/sched/clock.h>
#include <linux/utsname.h>
#include <linux/vgaarb.h>
#include <linux/workqueue.h>
#include <xen/events.h>
#include <xen/platform_pci.h>
#include <xen/xen.h>
#include <xen/xen-ops.h>
#include <xen/xenbus.h>
#include <xen/interface/physdev.h>
#include <xen/interface/vcpu.h>
#include <asm/xen/hypercall.h>
#include <asm/xen/hypervisor.h>

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
/* Declares before it defines: the kernel wants a prototype for each function. */
#define HELPER(ret, name, ...)					\
	ret PASTE(XENPCI_PREFIX, name)(__VA_ARGS__);		\
	ret PASTE(XENPCI_PREFIX, name)(__VA_ARGS__)

HELPER(bool, is_initial_domain, void)
{
	return xen_initial_domain();
}

HELPER(bool, is_pv_domain, void)
{
	return xen_pv_domain();
}

HELPER(bool, has_pv_devices, void)
{
	return xen_has_pv_devices();
}

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

/*
 * Xen's time (ns since its boot) when this vCPU was last switched to its
 * present run state, 0 on error. Call with interrupts off.
 */
HELPER(u64, runstate_entry_time, void)
{
	struct vcpu_runstate_info info = {};

	if (HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info,
			       xen_vcpu_nr(smp_processor_id()), &info))
		return 0;
	return info.state_entry_time;
}

HELPER(u64, clock_ns, void)
{
	return sched_clock();
}

/* What `uname -v` says in the initial name space. */
HELPER(const char *, kernel_version, void)
{
	return init_uts_ns.name.version;
}

HELPER(bool, queue_work, struct workqueue_struct *queue, struct work_struct *work)
{
	return queue_work(queue, work);
}

HELPER(void, raw_lock_init, raw_spinlock_t *lock, const char *name,
       struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(lock, name, key, LD_WAIT_SPIN);
#else
	raw_spin_lock_init(lock);
#endif
}

HELPER(unsigned long, raw_lock, raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

HELPER(void, raw_unlock, raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

HELPER(void, device_lock, struct device *dev)
{
	device_lock(dev);
}

HELPER(void, device_unlock, struct device *dev)
{
	device_unlock(dev);
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

HELPER(const char *, pci_driver_name, const struct pci_dev *dev)
{
	return dev_driver_string(&dev->dev);
}

HELPER(int, msix_exact, struct pci_dev *dev, struct msix_entry *entries, int count)
{
	return pci_enable_msix_exact(dev, entries, count);
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

HELPER(int, first_node, void)
{
	return first_online_node;
}

HELPER(void, bus_dev_error, struct xenbus_device *dev, int err, const char *text, bool fatal)
{
	if (fatal)
		xenbus_dev_fatal(dev, err, "%s", text);
	else
		xenbus_dev_error(dev, err, "%s", text);
}

/*
 * One line per call at most; what a peer can provoke goes through the caller's
 * ratelimit_state.
 */
HELPER(bool, ratelimit, struct ratelimit_state *state)
{
	return __ratelimit(state);
}

HELPER(void, ratelimit_init, struct ratelimit_state *state, int interval, int burst)
{
	ratelimit_state_init(state, interval, burst);
	ratelimit_set_flags(state, RATELIMIT_MSG_ON_RELEASE);
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

HELPER(int, request_shared_irq, unsigned int irq, irq_handler_t handler, const char *name,
       void *cookie)
{
	return request_irq(irq, handler, IRQF_SHARED, name, cookie);
}

HELPER(bool, pci_is_pf, struct pci_dev *dev)
{
	return dev->is_physfn && pci_num_vf(dev);
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
