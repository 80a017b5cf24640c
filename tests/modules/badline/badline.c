// SPDX-License-Identifier: GPL-2.0
/*
 * Has the emulator's edu card hold its interrupt line, and never quiets the
 * card: for a guest that has no frontend, beside badfront. While it is loaded
 * the line is held; unloaded, the card is quiet and the line given up.
 *
 *	bar	address of the card's BAR 0, as badfront reads it
 *	pirq	the interrupt to bind, as badfront reads it; 0: none, so that Xen does not
 *		see a guest on the line
 *	eoi	end each interrupt at once, as a driver does that claims all of them; without,
 *		the interrupt stays unserved
 *	ended	how often that was done
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <xen/xen.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/physdev.h>
#include <asm/xen/hypercall.h>

/* The card's registers: why it interrupts, a value that raises, one that ends it. */
#define EDU_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACK 0x64

static ulong bar;
module_param(bar, ulong, 0444);
MODULE_PARM_DESC(bar, "Address of the card's BAR 0");
static uint pirq;
module_param(pirq, uint, 0444);
MODULE_PARM_DESC(pirq, "Interrupt to bind, 0 for none");
static bool eoi;
module_param(eoi, bool, 0444);
MODULE_PARM_DESC(eoi, "End each interrupt at once");
static ulong ended;
module_param(ended, ulong, 0444);
MODULE_PARM_DESC(ended, "How often it was told to end");

static void __iomem *registers;
static evtchn_port_t port;
static struct task_struct *ender;

static int end_all(void *unused)
{
	struct physdev_eoi end = { .irq = pirq };

	while (!kthread_should_stop()) {
		/* Of an interrupt that is not out this is nothing. */
		(void)HYPERVISOR_physdev_op(PHYSDEVOP_eoi, &end);
		ended++;
		cond_resched();
	}
	return 0;
}

static void unbind(void)
{
	struct evtchn_close close = { .port = port };

	if (port)
		(void)HYPERVISOR_event_channel_op(EVTCHNOP_close, &close);
}

/* The kernel knows nothing of the channel, so that it stays masked: nobody serves it. */
static int bind(void)
{
	struct evtchn_bind_pirq channel = { .pirq = pirq, .flags = BIND_PIRQ__WILL_SHARE };
	int err = HYPERVISOR_event_channel_op(EVTCHNOP_bind_pirq, &channel);

	if (!err)
		port = channel.port;
	return err;
}

static int __init badline_init(void)
{
	int err;

	if (!xen_pv_domain() || xen_initial_domain() || !bar || (eoi && !pirq))
		return -EINVAL;
	registers = ioremap(bar, PAGE_SIZE);
	if (!registers)
		return -ENOMEM;
	err = pirq ? bind() : 0;
	if (err)
		goto unmap;
	if (eoi) {
		ender = kthread_run(end_all, NULL, "badline");
		if (IS_ERR(ender)) {
			err = PTR_ERR(ender);
			goto free;
		}
	}
	iowrite32(1, registers + EDU_RAISE);
	return 0;
free:
	unbind();
unmap:
	iounmap(registers);
	return err;
}
module_init(badline_init);

static void __exit badline_exit(void)
{
	if (ender)
		kthread_stop(ender);
	iowrite32(ioread32(registers + EDU_STATUS), registers + EDU_ACK);
	unbind();
	iounmap(registers);
}
module_exit(badline_exit);

MODULE_DESCRIPTION("A guest's card that holds its interrupt line, for the lab");
MODULE_LICENSE("GPL");
