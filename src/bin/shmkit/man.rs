//! The manual page: one for all commands.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::Roff;

/// The page, for `man`. `Man::render` would refer to a separate page for each command, and there
/// are none.
pub fn page(command: Command) -> std::io::Result<String> {
    let root = Man::new(command.clone().disable_help_subcommand(true));
    let mut page = Vec::new();
    root.render_title(&mut page)?;
    root.render_name_section(&mut page)?;
    root.render_synopsis_section(&mut page)?;
    root.render_description_section(&mut page)?;
    root.render_options_section(&mut page)?;
    Roff::new()
        .control("SH", ["COMMANDS"])
        .to_writer(&mut page)?;
    for command in command.get_subcommands() {
        commands_part(command, &mut page)?;
    }
    root.render_extra_section(&mut page)?;
    root.render_version_section(&mut page)?;
    let page = String::from_utf8_lossy(&page);
    // Each part begins like a page.
    let beginning = Roff::new().render();
    Ok(beginning.clone() + &page.replace(&beginning, ""))
}

/// A command's part of the page.
fn commands_part(command: &Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    let name = command.get_name();
    Roff::new().control("SS", [name]).to_writer(page)?;
    let part = Man::new(
        command
            .clone()
            .bin_name(format!("shmkit {name}"))
            .disable_help_flag(true),
    );
    let mut text = Vec::new();
    part.render_synopsis_section(&mut text)?;
    part.render_description_section(&mut text)?;
    if command.get_arguments().next().is_some() {
        part.render_options_section(&mut text)?;
    }
    // Sections of a page become paragraphs here.
    for line in String::from_utf8_lossy(&text).lines() {
        let line = if line.starts_with(".SH") { ".PP" } else { line };
        page.extend(line.bytes().chain([b'\n']));
    }
    Ok(())
}
