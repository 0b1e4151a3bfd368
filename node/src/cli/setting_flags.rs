//! The flags of a node: one for each setting of the table.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::failure::Failure;
use crate::config::NodeConfig;
use crate::config::settings::{SETTINGS, Setting};

/// The settings that flags were given for.
#[derive(Clone, Debug, Default)]
pub(super) struct SettingFlags(Vec<(&'static Setting, String)>);

impl SettingFlags {
    /// Sets what was given.
    pub(super) fn apply(&self, config: &mut NodeConfig) -> Result<(), Failure> {
        for (setting, text) in &self.0 {
            config.set(setting, text)?;
        }
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().fold(command, |command, setting| command.arg(argument(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(setting: &'static Setting) -> Arg {
    let help = match setting.default {
        "none" => setting.help.to_owned(),
        default => format!("{} [default: {default}]", setting.help),
    };
    let argument = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help(help)
        .value_parser(move |text: &str| checked(setting, text));
    if setting.is_switch {
        argument.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        argument
    }
}

/// The text, if the setting takes it.
fn checked(setting: &Setting, text: &str) -> Result<String, String> {
    setting.apply(&mut NodeConfig::default(), text).map(|()| text.to_owned())
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = SETTINGS.iter().filter_map(|setting| {
            let text = matches.get_one::<String>(setting.key)?;
            Some((setting, text.clone()))
        });
        Ok(SettingFlags(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
