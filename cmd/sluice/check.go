package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

func newCheckCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the node's file without starting anything",
		Long: `Check reads sluice.yaml and goes through everything that run does before its
first system call: fields, addresses, DNS providers and their credentials' form.
It exits with 0 if the file is good, else with 2 and the reason.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(path)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good: node %s, https %v, http %v, ports %v, admin %s\n",
				path, c.Node, c.Listeners.HTTPS, c.Listeners.HTTP, c.Ports, c.Admin)
			return err
		},
	}
	addConfigFlag(cmd, &path)
	return cmd
}

func addConfigFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "sluice.yaml", "the node's file")
}

func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path, os.LookupEnv)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}
