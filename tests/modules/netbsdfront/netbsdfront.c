// SPDX-License-Identifier: GPL-2.0
/*
 * A frontend that speaks the protocol as NetBSD's xpci does, written from the
 * facts of that driver and sharing no code with ours:
 *
 * - it publishes page, port, magic and its state in one transaction, without
 *   waiting for the backend;
 * - it reads root_num and root-N and nothing else of the backend: no vdev-N;
 * - it looks at every device and function of a bus, 256 of them;
 * - each access has 4 bytes, at a multiple of 4;
 * - it waits for an answer by looking at the flag, for ever, without an event;
 * - a legacy interrupt is bound by the number in the interrupt line register.
 *
 * When the backend is connected it enumerates, measures the BARs as a BIOS would,
 * and on QEMU's edu device (1234:11e8) raises and handles legacy interrupts.
 * What it finds is in the kernel's log, one line each:
 *
 *	netbsdfront: found BB:DD.F VVVV:DDDD class CCCCCC bars SIZES
 *	netbsdfront: probed N, found M, errors E
 *	netbsdfront: intx BB:DD.F pirq P: N raised, N handled
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci_regs.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/xen.h>
#include <xen/xenbus.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/physdev.h>
#include <xen/interface/io/pciif.h>
#include <asm/xen/hypercall.h>

#define ROUNDS 100

/* QEMU's edu device. */
#define EDU_ID		0x11e81234
#define EDU_SIZE	0x100000
#define EDU_LIVE	0x04
#define EDU_STATUS	0x24
#define EDU_RAISE	0x60
#define EDU_ACK		0x64

struct front {
	struct xenbus_device *dev;
	struct xen_pci_sharedinfo *shared;
	grant_ref_t grant;
	evtchn_port_t port;
	bool connected;
	unsigned int errors;
};

/* What the interrupt handler works with. */
struct edu {
	void __iomem *registers;
	struct completion handled;
	unsigned int count;
	u32 pirq;
};

static void do_op(struct front *f, struct xen_pci_op *op)
{
	struct evtchn_send send = { .port = f->port };

	memcpy(&f->shared->op, op, sizeof(*op));
	wmb();
	set_bit(_XEN_PCIF_active, (unsigned long *)&f->shared->flags);
	(void)HYPERVISOR_event_channel_op(EVTCHNOP_send, &send);
	while (test_bit(_XEN_PCIF_active, (unsigned long *)&f->shared->flags))
		cond_resched();
	rmb();
	memcpy(op, &f->shared->op, sizeof(*op));
}

static int conf_read(struct front *f, unsigned int bus, unsigned int devfn, int reg, u32 *value)
{
	struct xen_pci_op op = {
		.cmd = XEN_PCI_OP_conf_read,
		.bus = bus,
		.devfn = devfn,
		.offset = reg,
		.size = 4,
	};

	do_op(f, &op);
	*value = op.value;
	return op.err;
}

static int conf_write(struct front *f, unsigned int bus, unsigned int devfn, int reg, u32 value)
{
	struct xen_pci_op op = {
		.cmd = XEN_PCI_OP_conf_write,
		.bus = bus,
		.devfn = devfn,
		.offset = reg,
		.size = 4,
		.value = value,
	};

	do_op(f, &op);
	return op.err;
}

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct physdev_eoi eoi;
	struct edu *edu = data;
	u32 status = readl(edu->registers + EDU_STATUS);

	if (status) {
		writel(status, edu->registers + EDU_ACK);
		edu->count++;
	}
	eoi.irq = edu->pirq;
	(void)HYPERVISOR_physdev_op(PHYSDEVOP_eoi, &eoi);
	if (status)
		complete(&edu->handled);
	return IRQ_HANDLED;
}

/* Raises and handles ROUNDS interrupts. */
static void drive_intx(struct front *f, unsigned int bus, unsigned int devfn, u32 bar)
{
	struct evtchn_bind_pirq bind = { .flags = BIND_PIRQ__WILL_SHARE };
	struct edu edu = { .count = 0 };
	unsigned int raised;
	u32 command, line;
	int irq;

	if (conf_read(f, bus, devfn, PCI_COMMAND, &command) ||
	    conf_write(f, bus, devfn, PCI_COMMAND,
		       (command & 0xffff & ~PCI_COMMAND_INTX_DISABLE) | PCI_COMMAND_MEMORY) ||
	    conf_read(f, bus, devfn, PCI_INTERRUPT_LINE, &line)) {
		pr_err("intx: configuration space cannot be used\n");
		return;
	}
	edu.pirq = line & 0xff;
	edu.registers = ioremap(bar & PCI_BASE_ADDRESS_MEM_MASK, EDU_SIZE);
	if (!edu.registers) {
		pr_err("intx: no mapping of %08x\n", bar);
		return;
	}
	/* The device answers with the complement: its registers really are there. */
	writel(0x12345678, edu.registers + EDU_LIVE);
	if (readl(edu.registers + EDU_LIVE) != ~0x12345678U) {
		pr_err("intx: the device's registers do not answer\n");
		goto unmap;
	}
	init_completion(&edu.handled);
	bind.pirq = edu.pirq;
	if (HYPERVISOR_event_channel_op(EVTCHNOP_bind_pirq, &bind)) {
		pr_err("intx: pirq %u cannot be bound\n", edu.pirq);
		goto unmap;
	}
	irq = bind_evtchn_to_irqhandler(bind.port, edu_interrupt, 0, "netbsdfront", &edu);
	if (irq < 0) {
		pr_err("intx: no handler: %d\n", irq);
		goto unmap;
	}
	for (raised = 0; raised < ROUNDS; raised++) {
		writel(1, edu.registers + EDU_RAISE);
		if (!wait_for_completion_timeout(&edu.handled, 10 * HZ))
			break;
	}
	pr_info("intx %02x:%02x.%u pirq %u: %u raised, %u handled\n", bus, devfn >> 3, devfn & 7,
		edu.pirq, raised, edu.count);
	unbind_from_irqhandler(irq, &edu);
unmap:
	iounmap(edu.registers);
}

/* Measures a BAR: all ones in, the size out, the address back in. */
static u32 bar_size(struct front *f, unsigned int bus, unsigned int devfn, int reg, u32 *bar)
{
	u32 size = 0;

	if (conf_read(f, bus, devfn, reg, bar) || conf_write(f, bus, devfn, reg, ~0U) ||
	    conf_read(f, bus, devfn, reg, &size) || conf_write(f, bus, devfn, reg, *bar)) {
		f->errors++;
		return 0;
	}
	if (*bar & PCI_BASE_ADDRESS_SPACE_IO)
		size &= PCI_BASE_ADDRESS_IO_MASK;
	else
		size &= PCI_BASE_ADDRESS_MEM_MASK;
	return size & -size;
}

static void found(struct front *f, unsigned int bus, unsigned int devfn, u32 id)
{
	char sizes[80] = "";
	u32 class, word, bar, first = 0, size;
	int i, reg, len = 0;

	if (conf_read(f, bus, devfn, PCI_CLASS_REVISION, &class))
		f->errors++;
	for (i = 0; i < 6; i++) {
		reg = PCI_BASE_ADDRESS_0 + 4 * i;
		size = bar_size(f, bus, devfn, reg, &bar);
		if (i == 0)
			first = bar;
		len += scnprintf(sizes + len, sizeof(sizes) - len, " %x", size);
	}
	/* All the rest of the 256 bytes, as its drivers would look for capabilities. */
	for (reg = 0; reg < 256; reg += 4)
		if (conf_read(f, bus, devfn, reg, &word))
			f->errors++;
	pr_info("found %02x:%02x.%u %04x:%04x class %06x bars%s\n", bus, devfn >> 3, devfn & 7,
		id & 0xffff, id >> 16, class >> 8, sizes);
	if (id == EDU_ID)
		drive_intx(f, bus, devfn, first);
}

static void enumerate(struct front *f, unsigned int bus)
{
	unsigned int devfn, present = 0;
	u32 id;

	for (devfn = 0; devfn < 256; devfn++) {
		/* Its bus code believes the value, whatever the status says. */
		(void)conf_read(f, bus, devfn, PCI_VENDOR_ID, &id);
		if ((id & 0xffff) == 0xffff || (id & 0xffff) == 0)
			continue;
		present++;
		found(f, bus, devfn, id);
	}
	pr_info("probed 256, found %u, errors %u\n", present, f->errors);
}

static void connect(struct front *f)
{
	unsigned int roots, i, domain, bus;
	char key[16];

	if (xenbus_scanf(XBT_NIL, f->dev->otherend, "root_num", "%u", &roots) != 1)
		roots = 0;
	for (i = 0; i < roots && i < 256; i++) {
		snprintf(key, sizeof(key), "root-%u", i);
		if (xenbus_scanf(XBT_NIL, f->dev->otherend, key, "%x:%x", &domain, &bus) == 2 &&
		    domain == 0)
			enumerate(f, bus);
	}
	xenbus_switch_state(f->dev, XenbusStateConnected);
}

static void backend_changed(struct xenbus_device *dev, enum xenbus_state state)
{
	struct front *f = dev_get_drvdata(&dev->dev);

	if (state == XenbusStateClosing) {
		xenbus_switch_state(dev, XenbusStateClosed);
	} else if (state == XenbusStateConnected && !f->connected) {
		f->connected = true;
		connect(f);
	}
}

static int publish(struct front *f)
{
	struct xenbus_transaction t;
	int err;

	do {
		err = xenbus_transaction_start(&t);
		if (err)
			return err;
		err = xenbus_printf(t, f->dev->nodename, "pci-op-ref", "%u", f->grant) ?:
		      xenbus_printf(t, f->dev->nodename, "event-channel", "%u", f->port) ?:
		      xenbus_printf(t, f->dev->nodename, "magic", "%s", XEN_PCI_MAGIC) ?:
		      xenbus_printf(t, f->dev->nodename, "state", "%d", XenbusStateInitialised);
		if (err) {
			xenbus_transaction_end(t, 1);
			return err;
		}
		err = xenbus_transaction_end(t, 0);
	} while (err == -EAGAIN);
	f->dev->state = XenbusStateInitialised;
	return err;
}

static int front_probe(struct xenbus_device *dev, const struct xenbus_device_id *id)
{
	struct front *f = kzalloc(sizeof(*f), GFP_KERNEL);
	void *page;
	int err;

	if (!f)
		return -ENOMEM;
	f->dev = dev;
	err = xenbus_setup_ring(dev, GFP_KERNEL, &page, 1, &f->grant);
	if (err)
		goto free;
	f->shared = page;
	err = xenbus_alloc_evtchn(dev, &f->port);
	if (err)
		goto teardown;
	dev_set_drvdata(&dev->dev, f);
	err = publish(f);
	if (err)
		goto close;
	return 0;
close:
	xenbus_free_evtchn(dev, f->port);
teardown:
	xenbus_teardown_ring(&page, 1, &f->grant);
free:
	kfree(f);
	return err;
}

static void front_remove(struct xenbus_device *dev)
{
	struct front *f = dev_get_drvdata(&dev->dev);
	void *page = f->shared;

	xenbus_free_evtchn(dev, f->port);
	xenbus_teardown_ring(&page, 1, &f->grant);
	kfree(f);
}

static const struct xenbus_device_id front_ids[] = { { "pci" }, { "" } };

static struct xenbus_driver front_driver = {
	.name = "netbsdfront",
	.ids = front_ids,
	.probe = front_probe,
	.remove = front_remove,
	.otherend_changed = backend_changed,
};

static int __init front_init(void)
{
	return xen_pv_domain() && !xen_initial_domain() ?
		xenbus_register_frontend(&front_driver) : -ENODEV;
}
module_init(front_init);

static void __exit front_exit(void)
{
	xenbus_unregister_driver(&front_driver);
}
module_exit(front_exit);

MODULE_DESCRIPTION("A PCI frontend with NetBSD's manners, for the lab");
MODULE_LICENSE("GPL");
