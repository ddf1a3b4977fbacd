/* What lrnnx export knows of this plug-in. */
#define PLUGIN_NAME "@NAME@"
#define PLUGIN_ID @ID@
#define CROSSINGS @CROSSINGS@ /* zero crossings of a windowed sinc on either side */
#define CUTOFF @CUTOFF@ /* its cut-off relative to half the lower rate */
#define LOUDEST @LOUDEST@f /* full scales to which sound is clipped before the model */
