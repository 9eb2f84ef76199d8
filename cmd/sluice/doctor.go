package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/doctor"
)

// doctorError says how bad what was found is.
type doctorError struct {
	worst doctor.Severity
	found int
}

func (e doctorError) Error() string {
	return fmt.Sprintf("%s found, the worst %s", counted(e.found, "thing"), e.worst)
}

func newDoctorCommand() *cobra.Command {
	var path string
	var out outputFlag
	var ntp []string
	var all bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at what a node needs of its machine, etcd and DNS, and say how to mend what is amiss",
		Long: `Doctor looks at the kernel, limits, disk, clock, ports, firewall, DNS, the DNS
providers' permissions, etcd, certificates and the node's file, and writes what is
amiss, the worst first, with the command that mends it. It changes nothing. It runs
beside a live node, which it asks at its admin address, or before the first start;
as root it sees more. What it cannot find out it says, as without a network. It
ends within ten seconds. It exits with 0 if there is nothing worse than a note,
with 3 if there are warnings, with 1 if something is critical: the node does not
start, or does not serve something; with 2 if the node's file is wrong.`,
		Example: `  sluice doctor
  sluice doctor --config /etc/sluice/sluice.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			c, err := loadConfig(path)
			if err != nil {
				return err
			}
			s := &doctor.Subject{Path: path, Config: c, NTP: ntp, Live: doctor.Metrics(cmd.Context(), c.Admin)}
			s.EtcdTLS, s.EtcdTLSError = etcdTLS(c.Etcd.TLS)
			found := doctor.Run(cmd.Context(), s, doctor.All(), doctor.PerCheck)
			return tellFindings(cmd.OutOrStdout(), &out, found, all)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultFile, "the node's file")
	cmd.Flags().StringSliceVar(&ntp, "ntp", []string{"pool.ntp.org"}, "time servers to compare the clock with; empty: none")
	cmd.Flags().BoolVar(&all, "all", false, "tell also of what is as it should be")
	out.add(cmd)
	return cmd
}

// tellFindings writes what was found, and returns an error where that is bad.
func tellFindings(w io.Writer, out *outputFlag, found []doctor.Finding, all bool) error {
	bad, good := 0, 0
	for _, f := range found {
		switch {
		case f.Severity.Worse(doctor.Note):
			bad++
		case f.Severity == doctor.OK:
			good++
		}
	}
	err := out.list(w, len(found), func(i int) any { return found[i] }, func(w io.Writer) {
		for _, f := range found {
			if f.Severity == doctor.OK && !all {
				continue
			}
			fmt.Fprintf(w, "%s: %s: %s\n", f.Severity, f.Check, printable(f.Text))
			if f.Mend != "" {
				fmt.Fprintf(w, "    to mend it: %s\n", printable(f.Mend))
			}
		}
		fmt.Fprintf(w, "%s as it should be\n", counted(good, "thing"))
	})
	if err == nil && bad > 0 {
		err = doctorError{doctor.Worst(found), bad}
	}
	return err
}
