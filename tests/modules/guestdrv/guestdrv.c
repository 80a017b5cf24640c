// SPDX-License-Identifier: GPL-2.0
/*
 * An ordinary driver for any PCI function of a guest, which does to a frontend
 * what drivers do: asks for vectors, reads its registers from many threads and
 * from a timer's interrupt at once, has error handlers or lacks them, has a card
 * raise interrupts and counts them. In C, as the drivers are that a frontend has
 * to bear. The lab tells it the ids with new_id, and reads what it says in the
 * kernel's log.
 */
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>

static int vectors;
module_param(vectors, int, 0444);
MODULE_PARM_DESC(vectors, "Ask for so many MSI-X vectors, and be content with one");
static int threads;
module_param(threads, int, 0444);
MODULE_PARM_DESC(threads, "Read the ids from so many threads and from interrupt context");
static int reads = 1000;
module_param(reads, int, 0444);
MODULE_PARM_DESC(reads, "How often each of them");
static uint handlers;
module_param(handlers, uint, 0444);
MODULE_PARM_DESC(handlers, "Error handlers: 1 detected, 2 mmio, 4 slot_reset, 8 resume; 16 a table");
static bool msi;
module_param(msi, bool, 0444);
MODULE_PARM_DESC(msi, "Ask for MSI");
static int raise;
module_param(raise, int, 0444);
MODULE_PARM_DESC(raise, "Have the emulator's edu card raise so many interrupts, by MSI or its pin");

static atomic_t wrong = ATOMIC_INIT(0);
static atomic_t in_interrupt = ATOMIC_INIT(0);

struct readers {
	struct pci_dev *dev;
	struct hrtimer timer;
	u32 ids;
	u32 class;
	atomic_t left;
	struct completion done;
};

static void look(struct readers *readers)
{
	u32 value;

	pci_read_config_dword(readers->dev, PCI_VENDOR_ID, &value);
	if (value != readers->ids)
		atomic_inc(&wrong);
	/* A write and another register between, so that a mixed up answer shows. */
	pci_read_config_dword(readers->dev, PCI_CLASS_REVISION, &value);
	if (value != readers->class)
		atomic_inc(&wrong);
	pci_write_config_byte(readers->dev, PCI_CACHE_LINE_SIZE, 0x10);
}

/* Nobody tells the device to raise one. */
static irqreturn_t unexpected(int irq, void *dev)
{
	return IRQ_HANDLED;
}

static int read_thread(void *data)
{
	struct readers *readers = data;
	int i;

	for (i = 0; i < reads; i++)
		look(readers);
	if (atomic_dec_and_test(&readers->left))
		complete(&readers->done);
	return 0;
}

static enum hrtimer_restart read_timer(struct hrtimer *timer)
{
	struct readers *readers = container_of(timer, struct readers, timer);

	if (in_hardirq())
		atomic_inc(&in_interrupt);
	look(readers);
	hrtimer_forward_now(timer, ms_to_ktime(20));
	return HRTIMER_RESTART;
}

static void read_all(struct pci_dev *dev)
{
	struct readers readers = { .dev = dev };
	int i;

	pci_read_config_dword(dev, PCI_VENDOR_ID, &readers.ids);
	pci_read_config_dword(dev, PCI_CLASS_REVISION, &readers.class);
	atomic_set(&readers.left, threads);
	init_completion(&readers.done);
	hrtimer_setup_on_stack(&readers.timer, read_timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	hrtimer_start(&readers.timer, ms_to_ktime(20), HRTIMER_MODE_REL_HARD);
	for (i = 0; i < threads; i++)
		kthread_run(read_thread, &readers, "guestdrv/%d", i);
	wait_for_completion(&readers.done);
	hrtimer_cancel(&readers.timer);
	destroy_hrtimer_on_stack(&readers.timer);
	/* The last thread is in complete() for a moment yet; the stack is ours. */
	msleep(100);
	pci_info(dev, "guestdrv: threads=%d reads=%d in_interrupt=%d wrong=%d\n", threads, reads,
		 atomic_read(&in_interrupt), atomic_read(&wrong));
}

/* The emulator's edu, and its registers: why it interrupts, a value that raises, one that ends it. */
#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8
#define EDU_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACK 0x64

static struct {
	struct pci_dev *dev;
	void __iomem *registers;
	struct completion heard;
	atomic_t count;
} edu;

static irqreturn_t edu_interrupt(int irq, void *data)
{
	u32 status = ioread32(edu.registers + EDU_STATUS);

	if (!status)
		return IRQ_NONE;
	iowrite32(status, edu.registers + EDU_ACK);
	atomic_inc(&edu.count);
	complete(&edu.heard);
	return IRQ_HANDLED;
}

/* Each interrupt is raised when the one before was heard, so that none can swallow another. */
static int edu_raise(struct pci_dev *dev)
{
	int i, err;

	edu.registers = pci_iomap(dev, 0, 0);
	if (!edu.registers)
		return -ENOMEM;
	init_completion(&edu.heard);
	atomic_set(&edu.count, 0);
	err = request_irq(pci_irq_vector(dev, 0), edu_interrupt, IRQF_SHARED, "guestdrv", dev);
	if (err) {
		pci_iounmap(dev, edu.registers);
		return err;
	}
	edu.dev = dev;
	for (i = 0; i < raise; i++) {
		iowrite32(1, edu.registers + EDU_RAISE);
		if (!wait_for_completion_timeout(&edu.heard, 60 * HZ))
			break;
	}
	pci_info(dev, "guestdrv: msi=%d raised=%d heard=%d\n", dev->msi_enabled, i, atomic_read(&edu.count));
	return 0;
}

/* What it has stays on, until it is unbound or its guest is ended. */
static int interrupts(struct pci_dev *dev)
{
	int err = pci_enable_device(dev);

	if (err)
		return err;
	pci_set_master(dev);
	err = pci_alloc_irq_vectors(dev, 1, 1, msi ? PCI_IRQ_MSI : PCI_IRQ_INTX);
	pci_info(dev, "guestdrv: vectors=%d\n", err);
	if (err > 0 && raise && dev->vendor == EDU_VENDOR && dev->device == EDU_DEVICE)
		err = edu_raise(dev);
	if (err >= 0)
		return 0;
	pci_free_irq_vectors(dev);
	pci_disable_device(dev);
	return err;
}

static int probe(struct pci_dev *dev, const struct pci_device_id *id)
{
	long bound = 0;
	int got;

	if (vectors) {
		got = pci_enable_device_mem(dev);
		if (got)
			return got;
		got = pci_alloc_irq_vectors(dev, 1, vectors, PCI_IRQ_MSIX);
		while (bound < got && !request_irq(pci_irq_vector(dev, bound), unexpected, 0, "guestdrv", dev))
			bound++;
		pci_info(dev, "guestdrv: wanted=%d got=%d bound=%ld\n", vectors, got, bound);
		pci_set_drvdata(dev, (void *)bound);
	}
	if (threads)
		read_all(dev);
	if (msi || raise)
		return interrupts(dev);
	return 0;
}

static void leave(struct pci_dev *dev)
{
	long bound = (long)pci_get_drvdata(dev);

	if (edu.dev == dev) {
		free_irq(pci_irq_vector(dev, 0), dev);
		pci_iounmap(dev, edu.registers);
		edu.dev = NULL;
	}
	while (bound-- > 0)
		free_irq(pci_irq_vector(dev, bound), dev);
	if (vectors || msi || raise) {
		pci_free_irq_vectors(dev);
		pci_disable_device(dev);
	}
}

static pci_ers_result_t detected(struct pci_dev *dev, pci_channel_state_t state)
{
	u32 ids;

	pci_read_config_dword(dev, PCI_VENDOR_ID, &ids);
	pci_info(dev, "guestdrv: detected state=%u ids=%08x offline=%d\n", (__force unsigned int)state, ids,
		 pci_channel_offline(dev));
	return PCI_ERS_RESULT_CAN_RECOVER;
}

static pci_ers_result_t mmio(struct pci_dev *dev)
{
	pci_info(dev, "guestdrv: mmio\n");
	return PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t slot_reset(struct pci_dev *dev)
{
	pci_info(dev, "guestdrv: slot_reset\n");
	return PCI_ERS_RESULT_RECOVERED;
}

static void resume(struct pci_dev *dev)
{
	pci_info(dev, "guestdrv: resume offline=%d\n", pci_channel_offline(dev));
}

static struct pci_error_handlers errors;

static struct pci_driver driver = {
	.name = "guestdrv",
	.probe = probe,
	.remove = leave,
};

static int __init guestdrv_init(void)
{
	if (handlers & 1)
		errors.error_detected = detected;
	if (handlers & 2)
		errors.mmio_enabled = mmio;
	if (handlers & 4)
		errors.slot_reset = slot_reset;
	if (handlers & 8)
		errors.resume = resume;
	if (handlers & 31)
		driver.err_handler = &errors;
	return pci_register_driver(&driver);
}
module_init(guestdrv_init);

static void __exit guestdrv_exit(void)
{
	pci_unregister_driver(&driver);
}
module_exit(guestdrv_exit);

MODULE_DESCRIPTION("A driver that tries a PCI frontend, for the lab");
MODULE_LICENSE("GPL");
