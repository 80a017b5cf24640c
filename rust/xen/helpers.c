// SPDX-License-Identifier: GPL-2.0
/*
 * What exists in C only as a macro or an inline function: hypercalls (objtool
 * must see their call sites), domain type tests, device locking, variadic log
 * functions with a fixed format. What only one end calls is in helpers_back.c
 * and helpers_front.c.
 */
#include <linux/pci.h>
#include <linux/sched/clock.h>
#include <linux/sched/stat.h>
#include <linux/utsname.h>
#include <linux/workqueue.h>
#include <xen/platform_pci.h>
#include <xen/xen.h>
#include <xen/xenbus.h>
#include <asm/xen/hypervisor.h>

#include "helpers.h"

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

HELPER(u64, clock_ns, void)
{
	return sched_clock();
}

/* Whether more than the running thread wants this CPU. */
HELPER(bool, others_wait, void)
{
	return !single_task_running();
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

HELPER(const char *, pci_driver_name, const struct pci_dev *dev)
{
	return dev_driver_string(&dev->dev);
}

/* One line per call; what a peer can provoke is counted by the caller. */
HELPER(void, bus_dev_error, struct xenbus_device *dev, int err, const char *text, bool fatal)
{
	if (fatal)
		xenbus_dev_fatal(dev, err, "%s", text);
	else
		xenbus_dev_error(dev, err, "%s", text);
}
