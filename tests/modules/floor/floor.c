// SPDX-License-Identifier: GPL-2.0
/*
 * What a configuration read costs at the least, for `make bench`: an event to
 * dom0 and one back that do nothing else, and one read by the kernel itself.
 * All is done through the parameters:
 *
 *	guest	port	the event channel that waits for dom0
 *		rounds	write N: N events to dom0, each waited for
 *	dom0	insmod with domid= and port= of the guest: answers each event from the interrupt
 *	both	device, reads	write a BDF, then N: N dword reads at offset (0: its ids) by this kernel
 *		writes	the same with N writes of the byte that is there
 *		result	the last figures: median, 99th of 100, mean and least in ns
 *		looks	write N: N reads of a key of the store; the result is the CPU time of one,
 *			in ns, of the task that reads
 *		running	ns for which this domain's one vCPU has run
 */
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sched/clock.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include <xen/events.h>
#include <xen/xen.h>
#include <xen/xen-ops.h>
#include <xen/xenbus.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/vcpu.h>
#include <asm/xen/hypercall.h>

#define MOST 1000000
#define HOUR (3600ULL * NSEC_PER_SEC)

static uint domid;
module_param(domid, uint, 0444);
MODULE_PARM_DESC(domid, "dom0: the guest to answer");
static uint port;
module_param(port, uint, 0444);
MODULE_PARM_DESC(port, "dom0: its event channel; guest: the channel to give to dom0");
static char device[16];
module_param_string(device, device, sizeof(device), 0644);
MODULE_PARM_DESC(device, "Function to read, as 0000:00:05.0");
static uint offset;
module_param(offset, uint, 0644);
MODULE_PARM_DESC(offset, "Where to read and write");
static char result[96];
module_param_string(result, result, sizeof(result), 0444);
MODULE_PARM_DESC(result, "median p99 mean min in ns");

static int irq = -1;

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void keep_result(u64 *samples, uint count)
{
	u64 sum = 0;
	uint i;

	for (i = 0; i < count; i++)
		sum += samples[i];
	sort(samples, count, sizeof(*samples), compare, NULL);
	scnprintf(result, sizeof(result), "%llu %llu %llu %llu", samples[count / 2],
		  samples[count - 1 - count / 100], div_u64(sum, count), samples[0]);
}

/* A vmalloc array for as many samples as the text says. */
static u64 *samples_for(const char *text, uint *count)
{
	int err = kstrtouint(text, 0, count);
	u64 *samples;

	if (err)
		return ERR_PTR(err);
	if (!*count || *count > MOST)
		return ERR_PTR(-EINVAL);
	samples = vmalloc_array(*count, sizeof(*samples));
	return samples ?: ERR_PTR(-ENOMEM);
}

static int runstate(struct vcpu_runstate_info *info)
{
	return HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info, xen_vcpu_nr(smp_processor_id()), info);
}

static int set_rounds(const char *text, const struct kernel_param *param)
{
	struct vcpu_runstate_info info = {};
	unsigned long flags;
	uint i, count;
	u64 *samples;

	if (irq < 0 || xen_initial_domain() || runstate(&info))
		return -ENODEV;
	samples = samples_for(text, &count);
	if (IS_ERR(samples))
		return PTR_ERR(samples);
	for (i = 0; i < count; i++) {
		u64 start;

		local_irq_save(flags);
		xen_clear_irq_pending(irq);
		start = sched_clock();
		notify_remote_via_irq(irq);
		/* In Xen's time; so far away that it ends no wait, but Xen has to keep it. */
		xen_poll_irq_timeout(irq, info.state_entry_time + HOUR);
		samples[i] = sched_clock() - start;
		local_irq_restore(flags);
		cond_resched();
	}
	keep_result(samples, count);
	vfree(samples);
	return 0;
}

static const struct kernel_param_ops rounds_ops = { .set = set_rounds };
module_param_cb(rounds, &rounds_ops, NULL, 0200);
MODULE_PARM_DESC(rounds, "guest: make so many rounds");

static int access(const char *text, bool write)
{
	unsigned int domain, bus, slot, function;
	struct pci_dev *dev;
	uint i, count;
	u64 *samples;
	u32 value;
	u8 byte;

	if (sscanf(device, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
		return -EINVAL;
	dev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (!dev)
		return -ENODEV;
	samples = samples_for(text, &count);
	if (IS_ERR(samples)) {
		pci_dev_put(dev);
		return PTR_ERR(samples);
	}
	pci_read_config_byte(dev, offset, &byte);
	for (i = 0; i < count; i++) {
		u64 start = sched_clock();

		if (write)
			pci_write_config_byte(dev, offset, byte);
		else
			pci_read_config_dword(dev, offset, &value);
		samples[i] = sched_clock() - start;
		cond_resched();
	}
	keep_result(samples, count);
	vfree(samples);
	pci_dev_put(dev);
	return 0;
}

static int set_reads(const char *text, const struct kernel_param *param)
{
	return access(text, false);
}

static const struct kernel_param_ops reads_ops = { .set = set_reads };
module_param_cb(reads, &reads_ops, NULL, 0200);
MODULE_PARM_DESC(reads, "read so often");

static int set_writes(const char *text, const struct kernel_param *param)
{
	return access(text, true);
}

static const struct kernel_param_ops writes_ops = { .set = set_writes };
module_param_cb(writes, &writes_ops, NULL, 0200);
MODULE_PARM_DESC(writes, "write so often");

static int set_looks(const char *text, const struct kernel_param *param)
{
	uint i, count;
	int err = kstrtouint(text, 0, &count);
	u64 start;

	if (err)
		return err;
	if (!count || count > MOST)
		return -EINVAL;
	/* The scheduler adds up when a task leaves its CPU, and each look waits. */
	start = current->se.sum_exec_runtime;
	for (i = 0; i < count; i++) {
		char *value = xenbus_read(XBT_NIL, "name", "", NULL);

		if (IS_ERR(value))
			return PTR_ERR(value);
		kfree(value);
	}
	scnprintf(result, sizeof(result), "%llu",
		  div_u64(current->se.sum_exec_runtime - start, count));
	return 0;
}

static const struct kernel_param_ops looks_ops = { .set = set_looks };
module_param_cb(looks, &looks_ops, NULL, 0200);
MODULE_PARM_DESC(looks, "read a key of the store so often");

static int get_running(char *buffer, const struct kernel_param *param)
{
	struct vcpu_runstate_info info = {};
	int err;

	preempt_disable();
	err = runstate(&info);
	preempt_enable();
	return err ?: sysfs_emit(buffer, "%llu\n", info.time[RUNSTATE_running]);
}

static const struct kernel_param_ops running_ops = { .get = get_running };
module_param_cb(running, &running_ops, NULL, 0444);
MODULE_PARM_DESC(running, "ns of this vCPU in state running");

static irqreturn_t answer(int number, void *data)
{
	notify_remote_via_irq(number);
	return IRQ_HANDLED;
}

static irqreturn_t ignore(int number, void *data)
{
	return IRQ_HANDLED;
}

static int bind(evtchn_port_t local, irq_handler_t handler)
{
	struct evtchn_close close = { .port = local };

	irq = bind_evtchn_to_irqhandler(local, handler, 0, "floor", &irq);
	if (irq < 0)
		(void)HYPERVISOR_event_channel_op(EVTCHNOP_close, &close);
	return min(irq, 0);
}

static int __init floor_init(void)
{
	struct evtchn_bind_interdomain to_guest = { .remote_dom = domid, .remote_port = port };
	struct evtchn_alloc_unbound to_dom0 = { .dom = DOMID_SELF, .remote_dom = 0 };
	int err;

	if (!xen_pv_domain())
		return -ENODEV;
	if (xen_initial_domain()) {
		if (!port)
			return 0;
		err = HYPERVISOR_event_channel_op(EVTCHNOP_bind_interdomain, &to_guest);
		return err ?: bind(to_guest.local_port, answer);
	}
	err = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &to_dom0);
	if (!err)
		err = bind(to_dom0.port, ignore);
	if (err)
		return err;
	port = to_dom0.port;
	/* Masked: an event ends a poll, and is no interrupt. */
	disable_irq(irq);
	return 0;
}
module_init(floor_init);

static void __exit floor_exit(void)
{
	if (irq >= 0)
		unbind_from_irqhandler(irq, &irq);
}
module_exit(floor_exit);

MODULE_DESCRIPTION("The floor under the cost of a configuration read, for the lab");
MODULE_LICENSE("GPL");
